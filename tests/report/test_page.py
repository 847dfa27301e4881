"""The page: complete, self-contained, true to the records, and the same every time."""

import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest

from cpt_repro.claims.ledger import Ledger, build_ledger, exhibits_of, write_ledger
from cpt_repro.exhibits.draw import Drawn, draw
from cpt_repro.files import read_json, write_json
from cpt_repro.report.page import Compared, Page, write_report

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
    """Tags with their attributes, and the text outside style."""

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
        if "style" not in self.opened:
            self.text.append(data)


@pytest.fixture(scope="module")
def page(made):
    return Parsed((made.project.figures / "pocket" / "index.html").read_text(encoding="utf-8"))


def rendered(one):
    return Page(one.catalogue, one.records, one.project.figures).render()


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
        assert " ".join(about.caption.split()) in page.text
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
    parts += ["3.647 0.012 2.44 nats", "printed; Table 2, row 1", "first above second: 0.5 ± 0.01 (seeds)"]
    parts += ["Noise 0.01; by the published values held.", "1 held (1 test) 0 failed (0 tests)"]
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
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object", "embed", "base", "form"}
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
    assert "<script" not in text and "<img src=x" not in text
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
    assert "receipt ibrahim2024/405m/pile--sp/replay-0.05/seed-0 not run" in text
    assert "; the curves of 1 lack points that are wanted." in text


def test_a_third_paper_stands_on_the_page_as_a_root_of_its_own(third_project, repository):
    one = planned(third_project.with_(results=repository.results), "ibrahim2024", "third2026")
    page = Page(one.catalogue, one.records, one.project.figures)
    roots = {node.run.name: node for node in page.tree("third2026")}
    assert set(roots) == {"german-alone", "continued/replay-0.02", "continued/replay-0.25"}
    # Trained once, under the other paper's name.
    assert roots["german-alone"].seeds[0][1:] == (
        "done", "../../results/pocket/runs/ibrahim2024/405m/german/seed-0/receipt.json",
    )  # fmt: skip
    assert "A made-up third paper" in page.render()


# -- in a browser

MEASURE = (
    "<script>parent.postMessage([innerWidth, document.documentElement.scrollWidth, "
    "Math.max(...[...document.querySelectorAll('img')].map(i => i.naturalWidth))].join(' '), '*')"
    "</script></body>"
)


@pytest.mark.slow
@pytest.mark.skipif(
    not shutil.which("chromium"), reason="chromium is not installed (apt-get install chromium)"
)
@pytest.mark.parametrize("width", [1280, 390])
def test_page_fits_the_window_in_chromium(made, tmp_path, width):
    text = (made.project.figures / "pocket" / "index.html").read_text(encoding="utf-8")
    # Details opened, so that tables inside them count.
    opened = text.replace("<details>", "<details open>").replace("</body>", MEASURE)
    (tmp_path / "page.html").write_text(opened, encoding="utf-8")
    # A window has a least width of its own; a frame has not.
    frame = f"<iframe src='page.html' style='border: 0; width: {width}px; height: 1200px'></iframe>"
    wrapper = tmp_path / "wrapper.html"
    wrapper.write_text(f"<title></title><script>onmessage = e => document.title = e.data</script>{frame}")
    command = [
        "chromium", "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
        "--disable-dev-shm-usage", f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=5000",
        "--window-size=1300,1200",
    ]  # fmt: skip
    picture = tmp_path / "page.png"
    run = subprocess.run([*command, "--dump-dom", wrapper.as_uri()], capture_output=True, text=True)
    subprocess.run([*command, f"--screenshot={picture}", wrapper.as_uri()], capture_output=True)
    inner, needed, image = map(int, re.search(r"<title>(\d+) (\d+) (\d+)</title>", run.stdout).groups())
    assert inner == width
    assert needed <= inner, f"the page is {needed} pixels wide in a window of {inner}"
    assert image > 300 and picture.stat().st_size > 20_000
