"""The page: complete, self-contained, true to the records, and the same every time."""

import base64
import html
import json
import re
import shutil
import struct
import subprocess
import warnings
import zlib
from html.parser import HTMLParser
from pathlib import Path

import pytest

from cpt_repro.claims.grammar import VERDICTS
from cpt_repro.claims.ledger import FindingRecord, Ledger, build_ledger, exhibits_of, write_ledger
from cpt_repro.errors import UserError
from cpt_repro.exhibits.draw import Drawn, draw
from cpt_repro.files import read_json, write_json
from cpt_repro.report.charts import Charts
from cpt_repro.report.page import Compared, Page, images, write_report
from cpt_repro.report.receipts import anchor

from .conftest import DRAWN, opened, planned

LEDGER = Ledger(
    scale="pocket",
    about="Verdicts over receipts.",
    counts={"held": 1, "failed": 0, "inconclusive": 0, "not run": 1},
    test_counts={"held": 1},
    claims=[
        {
            "paper": "ibrahim2024", "id": "7", "source": "Table 2",
            "statement": "Replay & less <forgetting>.",
            "note": "", "verdict": "held", "decided_by": "seeds", "reason": "the test held",
            "analysis": "As it should.", "runs": ["405m/pile--sp/replay-0"],
            "seeds": (1, 3),
            "tests": [
                {
                    "kind": "ordering", "says": "Falls with replay.", "verdict": "held", "only_at": None,
                    "noise": 0.01, "tolerance": None, "missing": [], "reason": "",
                    "published_verdict": "held", "published_why": "",
                    "effects": [{"says": "first above second", "value": 0.5, "noise": 0.01, "by": "seeds"}],
                    "measured": [
                        {"name": "no replay", "unit": "nats", "value": 3.64651, "noise": 0.0123,
                         "published": 2.44, "mark": "printed", "place": "Table 2, row 1"},
                    ],
                }
            ],
        },
        {
            "paper": "gupta2023", "id": "C1", "statement": "Warm-up does not matter.", "source": "Figure 1",
            "note": "n.", "verdict": "not run", "decided_by": "no measurement", "reason": "", "runs": [],
            "seeds": None, "analysis": None, "tests": [],
        },
    ],
    sha256={},
)  # fmt: skip


class Parsed(HTMLParser):
    """Tags with their attributes, and the text outside styles and scripts."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text, self.opened = [], [], []
        self.feed(text)
        self.text = " ".join("".join(self.text).split())

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.opened.append(tag)

    def handle_endtag(self, tag):
        assert self.opened.pop() == tag
        if tag in ("td", "th"):
            self.text.append(" ")

    def handle_data(self, data):
        if not {"style", "script"} & set(self.opened):
            self.text.append(data)


@pytest.fixture(scope="module")
def page(made):
    return Parsed((made.project.figures / "pocket" / "index.html").read_text(encoding="utf-8"))


def opened_page(one):
    return Page(one.catalogue, one.records, one.project.figures)


def rendered(one):
    return opened_page(one).render()


def test_page_has_every_exhibit_with_its_command(made, page):
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids)) and page.opened == []
    for (paper, key), exhibit in made.catalogue.exhibits.items():
        assert f"{paper}-{key}" in ids and exhibit.title in page.text
        target = f"figures/pocket/{paper}/{key}.{'png' if exhibit.makes == 'figure' else 'md'}"
        assert f"snakemake --cores all {target} --config scale=pocket" in page.text
        assert f"cpt-repro draw {paper}/{key} --scale pocket" in page.text
    declared = len(made.catalogue.exhibits)
    assert page.text.count("Not drawn.") == declared - len(DRAWN)
    assert f"{len(DRAWN)} of {declared} exhibits are drawn" in page.text


def test_page_shows_the_exhibits_as_drawn(made, page):
    images = [attrs for tag, attrs in page.tags if tag == "img"]
    assert len(images) == 1 and images[0]["src"].startswith("data:image/webp;base64,") and images[0]["alt"]
    titles = {attrs.get("title") for tag, attrs in page.tags if tag == "code"}
    for paper, key in DRAWN:
        about = Drawn.model_validate(read_json(made.project.figures / "pocket" / paper / f"{key}.json"))
        assert all(" ".join(text.split()) in page.text for text in (about.caption, *about.notes))
        assert {f"SHA-256 {sha256}" for sha256 in about.sha256.values()} <= titles
        assert bool(about.tables) == key.startswith("table")
        for row in (row for part in about.tables for row in (part.heads, *part.rows)):
            assert all(" ".join(cell.split()) in page.text for cell in row)


def test_page_shows_claims_and_counts(spoilt):
    write_ledger(LEDGER, spoilt.figures)
    text = Parsed(rendered(spoilt())).text
    parts = [
        "Replay & less <forgetting>.",
        "Warm-up does not matter.",
        "Decided by seeds; 1 to 3 seeds a run.",
        "As it should.",
    ]
    parts += [
        "held Falls with replay.",
        "3.647 0.012 2.44 nats",
        "printed; Table 2, row 1",
        "first above second: 0.5000 ± 0.010 (seeds)",
    ]
    parts += ["Noise 0.010; by the published values held.", "1 held (1 test) 0 failed (0 tests)"]
    assert [part for part in parts if part not in text] == []


def test_page_shows_lineage_environment_discrepancies_and_citation(made, page):
    runs = made.plan.runs
    for run in runs.values():
        assert f"{run.name} {run.training.tokens:,} tokens" in page.text
    assert len(re.findall(r"seed \d: done", page.text)) == len(runs)
    assert f"{len(runs)} of {len(runs)} runs (one seed each) are trained." in page.text
    tokens = sum(made.plan.trainings[identity][0].training.tokens for identity in made.plan.trainings)
    assert f"{tokens:,} tokens trained" in page.text
    models = len(made.catalogue.models)
    assert f"{models} of {models} models have benchmark results" in page.text
    assert "@misc{cpt_repro_pocket," in page.text and "eprint = {2403.08763}" in page.text
    for paper in made.plan.papers:
        for one in made.plan.studies[paper].discrepancies:
            parts = [one.what, one.default, *(f"{paper}/{one.id}/{name}" for name in one.variants)]
            assert all(" ".join(part.split()) in page.text for part in parts)


def test_page_loads_nothing_and_its_links_lead_somewhere(made, page):
    folder = made.project.figures / "pocket"
    ids = {attrs["id"] for _, attrs in page.tags if "id" in attrs}
    assert not {tag for tag, _ in page.tags} & {"link", "iframe", "object", "embed", "base", "form"}
    scripts = [attrs for tag, attrs in page.tags if tag == "script"]
    packed = [{"type": "text/plain", "id": name} for name in ("library", "curves")]
    assert scripts == [*packed, {}]  # those that hold data, and the page's own
    text = (folder / "index.html").read_text(encoding="utf-8")
    style = re.search(r"<style>(.*?)</style>", text, re.DOTALL)[1]
    assert "url(" not in style and "@import" not in style
    links = [attrs["href"] for _, attrs in page.tags if attrs.get("href")]
    assert len(links) > 200
    for href in links:
        assert href[1:] in ids if href.startswith("#") else (folder / href).is_file(), href
    for tag, attrs in page.tags:
        assert not any(name.startswith("on") for name in attrs) and (tag == "img" or "src" not in attrs)


def test_page_begins_with_the_answer(made, page):
    """What held in a sentence, then the main effects, what did not hold first, each with its claims."""
    ledger = build_ledger(made.catalogue, made.records)
    page = Page(made.catalogue, made.records, made.project.figures)
    effects = page.effects(ledger)
    assert len(effects) == len(ledger.findings) > 10
    order = ["failed", "inconclusive", "undecidable here", "not run", "held"]
    worst = [min(order.index(verdict) for verdict in one.finding.claims.values()) for one in effects]
    assert worst == sorted(worst)
    for one in effects:
        of = one.finding
        assert (one.ends is None) == (of.value is None or not of.published or abs(of.published) < 0.002)
        if one.ends:
            low, middle, high = one.ends
            assert 0 <= low <= middle <= high <= 100
            if abs(of.value - of.published) > of.noise:
                assert (middle > Compared.place(1)) == (of.value / of.published > 1)
    text = Parsed(page.render()).text
    first = text[: text.index("What this is")]
    assert f"{ledger.counts['held']} of the papers’ {len(ledger.claims)} claims held" in first
    assert all(one.finding.says in first for one in effects)


def test_claims_and_exhibits_lead_to_each_other(made, page):
    ledger = build_ledger(made.catalogue, made.records)
    sources = {(claim.paper, claim.id): exhibits_of(claim) for claim in ledger.claims}
    assert sources["ibrahim2024", "2"] == ["figure_01", "table_03", "table_05"]
    assert sources["gupta2023", "C12"] == ["figure_06", "figure_04"]
    links = {
        attrs["href"] for tag, attrs in page.tags if tag == "a" and attrs.get("href", "").startswith("#")
    }
    for (paper, claim), keys in sources.items():
        assert f"#claim-{paper}-{claim}" in links or not {(paper, key) for key in keys} & {*DRAWN}
        assert {f"#{paper}-{key}" for key in keys} <= links


def test_cells_lead_to_the_receipts_that_they_are_from(made):
    text = (made.project.figures / "pocket" / "index.html").read_text(encoding="utf-8")
    about = Drawn.model_validate(read_json(made.project.figures / "pocket" / "ibrahim2024" / "table_02.json"))
    (part,) = about.tables
    assert len(part.cells) == 14 and sum(map(len, part.cells.values())) == 14 * 3
    for run, cells in part.cells.items():
        for row, column in cells:
            cell = html.escape(part.rows[row][column])
            assert f'<a href="#{anchor(run)}">{cell}</a>' in text.replace("<b>", "").replace("</b>", "")
    # What was published, and what was declared, leads nowhere.
    assert {column for cells in part.cells.values() for _, column in cells} == {3, 6, 9}


def test_claims_are_told_in_words(made):
    """No id of a run or corpus has to be known to read them; runs lead to their receipts."""
    page, ledger = opened_page(made), build_ledger(made.catalogue, made.records)
    claims = page.render().split('<section id="claims"')[1].split("</section>")[0]
    text = Parsed(claims.partition(">")[2]).text
    named = {name for one in ledger.claims for test in one.tests for name in (m.name for m in test.measured)}
    assert len(named) > 300 and not [name for name in named if name in text]
    assert "loss on the Pile of 405M: the Pile → SlimPajama, replay 0.05" in text
    runs = {(one.paper, run) for one in ledger.claims for run in one.runs}
    there = [(paper, run) for paper, run in runs if made.plan.find(paper, run)]
    assert len(there) > 50
    assert all(f'href="#{page.of_run(*run)}"' in claims for run in there)


def test_effects_lead_to_exhibits_and_receipts(made):
    ledger, page = build_ledger(made.catalogue, made.records), opened_page(made)
    first = page.render().split('<table class="effects')[1].split("</table>")[0]
    for one in page.effects(ledger):
        assert one.exhibits and one.runs
        assert all(f'href="#{place}"' in first for place in (*one.exhibits, *one.runs))


@pytest.mark.parametrize(
    ("value", "noise", "published", "beyond", "why"),
    [
        (0.1, 0.01, 0.1, (False, False), None),
        (0.24, 0.02, 0.1, (False, True), None),
        (-0.1, 0.2, 0.1, (True, False), None),
        (0.1, 0.01, 0.0, (False, False), "nothing in print: no multiple of it"),
        (None, None, 0.1, (False, False), "not measured"),
        (0.1, 0.01, None, (False, False), "no value published"),
    ],
)
def test_an_effect_beyond_its_axis_or_without_one_says_so(value, noise, published, beyond, why):
    record = FindingRecord(
        paper="p", says="s", value=value, noise=noise, published=published, mark=None, place=None, claims={}
    )
    one = Compared(record, {}, ())
    assert one.beyond == beyond and (one.ends is None) == (why is not None)
    assert why is None or one.why_not == why


@pytest.mark.slow
def test_the_page_of_pocket_can_be_sent_by_mail(repository):
    """All of its figures, tables and receipts in 2 MB."""
    text = rendered(planned(repository, "gupta2023", "ibrahim2024"))
    assert text.count("data:image/webp") == 22 and len(text.encode()) < 2_000_000


def test_page_is_semantic(page):
    tags = dict(page.tags)
    assert tags["html"] == {"lang": "en"}
    parts = ["header", "nav", "main", "section", "article", "figure", "figcaption", "caption", "footer"]
    assert set(parts) <= set(tags) and sum(tag == "h1" for tag, _ in page.tags) == 1
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h\d", tag)]
    assert all(below - above <= 1 for above, below in zip(levels, levels[1:], strict=False))
    assert all(attrs.get("scope") for tag, attrs in page.tags if tag == "th")


def test_page_escapes_text(spoilt):
    sidecar = spoilt.figures / "ibrahim2024" / "table_02.json"
    part = {"title": "<script>", "heads": ["a"], "rows": [["<img src=x onerror=alert(1)> | _é_"]]}
    changed = {"caption": "<script>alert('c')</script>", "tables": [part]}
    write_json(sidecar, read_json(sidecar) | changed)
    text = rendered(spoilt())
    assert text.count("<script") == 3 and "<script>alert" not in text and "<img src=x" not in text
    shown = Parsed(text).text
    assert "<script>alert('c')</script>" in shown and "<img src=x onerror=alert(1)> | _é_" in shown


def test_page_is_the_same_every_time(made, repository, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    there = (made.project.figures / "pocket" / "index.html").read_text(encoding="utf-8")
    assert rendered(opened(repository, made.root)) == there and str(made.root) not in there


def test_page_of_nothing_says_so(repository, tmp_path):
    one = opened(repository, tmp_path)
    text = Parsed(write_report(one.catalogue, one.records).read_text(encoding="utf-8")).text
    assert "No ledger yet." in text and "Nothing is drawn yet." in text
    assert f"0 of {len(one.plan.runs)} runs (one seed each)" in text and "seed 0: done" not in text


def test_page_names_what_is_missing_or_incomplete(spoilt):
    runs = spoilt.root / "results" / "pocket" / "runs" / "ibrahim2024" / "405m"
    (runs / "pile--sp" / "replay-0.05" / "seed-0" / "receipt.json").unlink()
    path = runs / "pile" / "seed-0" / "receipt.json"
    receipt = read_json(path)
    receipt["losses"]["pile"]["curve"] = receipt["losses"]["pile"]["curve"][-3:]
    write_json(path, receipt)
    one = spoilt()
    draw(one.catalogue, one.records, "ibrahim2024", "table_02")
    text = Parsed(rendered(one)).text
    assert "seed 0: not run" in text and "seed 0: to be measured" in text
    assert "1 of them miss records (marked “not run”)ibrahim2024/table_02" in text
    assert "ibrahim2024/405m/pile--sp/replay-0.05: receipt 0 not run" in text
    assert "; the curves of 1 lack points that are wanted." in text


def test_a_third_paper_stands_on_the_page_as_a_root_of_its_own(third_project, repository):
    one = planned(third_project.with_(results=repository.results), "ibrahim2024", "third2026")
    page = Page(one.catalogue, one.records, one.project.figures)
    roots = {node.run.name: node for node in page.tree("third2026")}
    assert set(roots) == {"german-alone", "continued/replay-0.02", "continued/replay-0.25"}
    # Trained once, under the other paper's name.
    first = roots["german-alone"].readable.seeds[0]
    there = "results/pocket/runs/ibrahim2024/405m/german/seed-0/receipt.json"
    assert first.state == "done" and page.place(first.receipt.path) == there
    assert "A made-up third paper" in page.render()


def test_every_run_has_its_receipts_to_be_read(made, page):
    """What an exhibit is drawn from leads to a run's place, which has settings, values and files."""
    anchors = {attrs["id"] for _, attrs in page.tags if attrs.get("id", "").startswith("run-")}
    names = {f"{run.paper}/{run.name}" for run in made.plan.runs.values()}
    assert anchors >= {anchor(name) for name in names}
    text = (made.project.figures / "pocket" / "index.html").read_text(encoding="utf-8")
    place = text[text.index(f'<li id="{anchor("ibrahim2024/405m/pile--sp/replay-0.05")}">') :]
    own = Parsed(place[place.index("<details>") : place.index("</details>") + len("</details>")])
    run = made.plan.runs["ibrahim2024/405m/pile--sp/replay-0.05/seed-0"]
    receipt, rate = made.records.receipt(run), run.training.schedule.eta_max
    for part in (
        "63,648 parameters (2 layers, width 24, 1 head), for the paper's 405m",
        f"tokens: {run.training.tokens:,} (299B of the paper), in {run.training.iterations:,} iterations",
        "text: 5 % English, broad; 95 % English, web",
        f"schedule: cosine, eta_max {rate:g}, eta_min {rate / 10:g}, warmup_frac 0.01",
        "from ibrahim2024/405m/pile",
        "cpt-repro train ibrahim2024/405m/pile--sp/replay-0.05/ --scale pocket",
        f"{receipt.losses['sp'].start:.3f} → {receipt.losses['sp'].final.loss:.4f}",
    ):
        assert part in own.text
    links = [attrs["href"] for tag, attrs in own.tags if tag == "a"]
    assert links == [f"#{anchor('ibrahim2024/405m/pile')}"]
    assert all(head in own.text for head in ("Record", "SHA-256", "trained in", "receipt", "evaluation"))
    assert f"{receipt.measured.seconds / 60:,.1f} min" in own.text
    assert "records below results/pocket/runs/ibrahim2024/405m/pile--sp/replay-0.05" in own.text


def test_page_may_be_sent_alone(made, page):
    """Nothing on it leads to a file beside it."""
    leads = [attrs["href"] for tag, attrs in page.tags if tag == "a"]
    assert leads and all(lead.startswith(("#", "https://")) for lead in leads)
    assert all(attrs["src"].startswith("data:") for tag, attrs in page.tags if tag == "img")


def test_what_failed_is_told_with_its_reason_on_the_first_screen(made, page):
    first = page.text[: page.text.index("What this is")]
    failed = [claim for claim in opened_page(made).ledger().claims if claim.verdict == "failed"]
    assert failed and all(claim.statement in first and claim.analysis in first for claim in failed)


def test_curves_to_be_explored_are_those_of_the_records(made, page):
    text = (made.project.figures / "pocket" / "index.html").read_text(encoding="utf-8")
    packed = re.search(r'<script type="text/plain" id="curves">([^<]*)</script>', text)[1]
    data = json.loads(zlib.decompress(base64.b64decode(packed)))
    places = {attrs["data-chart"] for _, attrs in page.tags if "data-chart" in attrs}
    assert places == set(data["charts"])
    name = "ibrahim2024/405m/pile--sp/replay-0.05"
    (panel,) = data["charts"][anchor(name)]
    assert [curve["label"] for curve in panel["curves"]] == ["English, broad", "English, web"]
    for corpus, curve in zip(("pile", "sp"), panel["curves"], strict=True):
        for seed, (xs, ys) in curve["seeds"].items():
            run = made.plan.runs[f"{name}/seed-{seed}"]
            there = made.records.curve(run, corpus)
            assert data["arrays"][ys] == [round(loss, 4) for _, loss in there]
            assert data["arrays"][xs] == [round(run.position(iteration), 4) for iteration, _ in there]
    charts, exhibit = Charts(made.catalogue, made.records), made.catalogue.find("ibrahim2024", "figure_05")
    for key in ("figure_05", "figure_02", "table_02"):  # a diagram and a table have no curves
        charts.add_figure(key, "ibrahim2024", key)
    assert list(charts.charts) == ["figure_05"]
    panels = charts.charts["figure_05"]
    assert [len(one["curves"]) for one in panels] == [len(one.curves) for one in exhibit.panels]
    assert all(one["base"]["label"] == "final loss of the union" for one in panels)


def test_the_library_is_d3_and_names_no_place(made):
    text = (made.project.figures / "pocket" / "index.html").read_text(encoding="utf-8")
    packed = re.search(r'<script type="text/plain" id="library">([^<]*)</script>', text)[1]
    library = zlib.decompress(base64.b64decode(packed)).decode()
    assert library.startswith("// https://d3js.org") and "</script" not in library


# -- in a browser

#: What a frame reports of itself when `check` (JavaScript, which may wait) is through.
REPORT = """<script>
const faults = [];
addEventListener("error", (event) => faults.push(event.message));
addEventListener("unhandledrejection", (event) => faults.push(String(event.reason)));
</script>"""
CHECK = """<script>
const pause = (ms) => new Promise((done) => setTimeout(done, ms));
const until = async (what) => { for (let k = 0; k < 200 && !what(); k++) await pause(50); return what(); };
(async () => { %s })().catch((fault) => { faults.push(String(fault)); return null; })
  .then((result) => parent.postMessage(JSON.stringify({ result, faults }), "*"));
</script></body>"""

in_chromium = pytest.mark.skipif(
    not shutil.which("chromium"), reason="chromium is not installed (apt-get install chromium)"
)


def in_browser(page, folder, check, width=1280, dark=False, scripts=""):
    """What `check` gives in a frame of that width, once the page is there; no script may have failed."""
    text = page.replace("<head>", "<head>" + REPORT, 1)
    (folder / "page.html").write_text(text.replace("</body>", scripts + CHECK % check), encoding="utf-8")
    # A window has a least width of its own; a frame has not.
    frame = f"<iframe src='page.html' style='border: 0; width: {width}px; height: 1200px'></iframe>"
    wrapper = folder / "wrapper.html"
    listen = "<script>onmessage = e => document.querySelector('pre').textContent = e.data</script>"
    wrapper.write_text(f"<pre></pre>{listen}{frame}")
    command = [
        "chromium", "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
        "--disable-dev-shm-usage", f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=60000",
        "--window-size=1300,1200", *(["--blink-settings=preferredColorScheme=0"] if dark else []),
    ]  # fmt: skip
    run = subprocess.run([*command, "--dump-dom", wrapper.as_uri()], capture_output=True, text=True)
    found = re.search(r"<pre>(.+?)</pre>", run.stdout, re.DOTALL)
    assert found, run.stderr[-2000:]
    told = json.loads(html.unescape(found[1]))
    assert told["faults"] == []
    return told["result"]


@pytest.fixture(scope="module")
def text(made):
    return (made.project.figures / "pocket" / "index.html").read_text(encoding="utf-8")


def opened_wide(text):
    """All details open, so that what is inside them counts."""
    return text.replace("<details", "<details open")


@pytest.mark.slow
@in_chromium
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [1280, 390])
def test_page_fits_the_window_in_chromium(text, tmp_path, width, dark):
    check = """
      await until(() => document.querySelector("[data-chart] svg"));
      return [innerWidth, document.documentElement.scrollWidth,
        Math.max(...[...document.querySelectorAll("img")].map((image) => image.naturalWidth))];
    """
    inner, needed, image = in_browser(opened_wide(text), tmp_path, check, width, dark)
    assert inner == width and image > 300
    assert needed <= inner, f"the page is {needed} pixels wide in a window of {inner}"


@pytest.mark.slow
@in_chromium
def test_tables_sort_and_claims_are_found_in_chromium(text, tmp_path):
    check = """
      const box = document.querySelector("#claims input[type=search]");
      const type = (value) => { box.value = value; box.dispatchEvent(new Event("input")); };
      const rows = [...document.querySelectorAll("table.claims > tbody > tr")];
      const shown = () => rows.filter((row) => !row.hidden);
      const all = shown().length;
      type("replay re-warming"); const some = shown().map((row) => row.textContent.toLowerCase());
      type(""); document.querySelector("#claims input[type=checkbox]").click();
      const without = shown().length;
      const table = document.querySelector("table.effects");
      const value = (row) => parseFloat(row.cells[1].textContent.replace("−", "-"));
      const values = () => [...table.tBodies[0].rows].map(value);
      const before = values(), button = table.querySelectorAll("button.sort")[1];
      button.click(); const up = values(); button.click(); const down = values(); button.click();
      location.hash = "#ibrahim2024-table_02"; await pause(200);
      const fold = document.querySelector("#ibrahim2024-table_02 > details").open;
      const names = [...document.querySelectorAll("#claims .tools label")];
      const labels = names.map((label) => label.textContent.trim());
      return { all, some, without, before, up, down, again: values(), fold, labels };
    """
    told = in_browser(text, tmp_path, check)
    assert told["all"] == text.count('<tr id="claim-') > 50
    assert 0 < len(told["some"]) < told["all"]
    assert all("replay" in row and "re-warming" in row for row in told["some"])
    assert 0 < told["without"] < told["all"]
    assert told["up"] == sorted(told["before"]) and told["down"] == told["up"][::-1] != told["up"]
    assert {*told["labels"]} <= {*VERDICTS} and len({*told["labels"]}) == len(told["labels"]) > 2
    assert told["again"] == told["before"] and told["fold"] is True


@pytest.mark.slow
@in_chromium
def test_curves_are_explored_in_chromium(text, tmp_path):
    place = anchor("ibrahim2024/405m/pile--sp/replay-0.05")
    check = """
      for (let e = document.getElementById("PLACE").querySelector("[data-chart]"); e; e = e.parentElement)
        if (e.tagName === "DETAILS") e.open = true;
      const panel = await until(() => document.getElementById("PLACE").querySelector(".panel"));
      const lines = () => panel.querySelectorAll("svg path[stroke-width]").length;
      const all = lines(), box = panel.querySelector("svg").getBoundingClientRect();
      const move = (share) => panel.querySelector("svg").dispatchEvent(new MouseEvent("mousemove",
        { clientX: box.left + share * box.width, clientY: box.top + box.height / 2, bubbles: true }));
      move(0.9); const late = panel.querySelector(".tip").textContent;
      move(0.2); const early = panel.querySelector(".tip").textContent;
      const [log, ...seeds] = panel.querySelectorAll("input[type=checkbox]");
      seeds[0].click(); const fewer = lines(); seeds[0].click();
      panel.querySelector(".legend button").click(); const one = lines();
      const axis = () => panel.querySelector("svg > text:last-of-type").textContent;
      const choice = panel.querySelector("select"), loss = axis();
      choice.value = "start"; choice.dispatchEvent(new Event("change"));
      return { all, late, early, fewer, one, loss, start: axis(), seeds: seeds.length };
    """.replace("PLACE", place)
    told = in_browser(text, tmp_path, check)
    # Of each of two corpora three seeds and their mean.
    assert (told["seeds"], told["all"], told["fewer"], told["one"]) == (3, 8, 6, 4)
    assert re.fullmatch(r"English, (broad|web), (mean|seed \d): \d\.\d{4} at \d+\.\d\d", told["late"])
    assert told["late"] != told["early"]
    assert (told["loss"], told["start"]) == ("loss (nats/token)", "loss minus its start")


@pytest.mark.slow
@in_chromium
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [1280, 390])
def test_page_is_accessible_in_chromium(text, tmp_path, width, dark):
    """What axe, the checker of the field, finds with everything unfolded: nothing."""
    from axe_core_python import base

    axe = Path(base.__file__).with_name("axe.min.js").read_text(encoding="utf-8")
    check = """
      await until(() => document.querySelector("[data-chart] svg"));
      const found = await axe.run(document, { resultTypes: ["violations"] });
      const ground = getComputedStyle(document.body).backgroundColor;
      const violations = found.violations.map(({ id, nodes }) =>
        [id, nodes.length, nodes[0].html, nodes[0].failureSummary]);
      return { ground, violations };
    """
    scripts = f"<script>{axe}</script>"
    told = in_browser(opened_wide(text), tmp_path, check, width, dark, scripts)
    assert told["violations"] == []
    assert told["ground"] == ("rgb(23, 25, 27)" if dark else "rgb(255, 255, 255)")


@pytest.mark.parametrize("width, height", [(9_500, 9_500), (10_001, 10), (60_000, 60_000), (0, 10)])
def test_a_picture_that_claims_to_be_huge_is_refused_in_one_sentence(tmp_path, width, height):
    def chunk(kind, content):
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    path = tmp_path / "figure_01.png"
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b""))
    with warnings.catch_warnings(record=True) as said, pytest.raises(UserError, match="no picture of an"):
        images([path])
    assert not said
