"""The report page, `verify` and `cite`: complete, self-contained, true to the receipts, and the same every time."""

import functools
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
from exhibit_receipts import make_results
from typer.testing import CliRunner

from cpt_repro import __version__, citation, cli, verify
from cpt_repro.claims.ledger import Ledger, build_ledger, write_ledger
from cpt_repro.project import ROOT
from cpt_repro.declarations.scale import load_scale
from cpt_repro.declarations.strict import read_yaml
from cpt_repro.errors import UserError
from cpt_repro.planning.evaluation_identity import evaluation_identity
from cpt_repro.declarations.exhibits import load_exhibits
from cpt_repro.exhibits.draw import draw
from cpt_repro.files import digest, file_digest, read_json, write_json
from cpt_repro.planning.plan import Plan
from cpt_repro.records.receipts import receipt_path
from cpt_repro.report.page import pipe_tables, render, write_report

DRAWN = [
    ("gupta2023", "figure_02"),
    ("ibrahim2024", "figure_02"),
    ("ibrahim2024", "table_02"),
    ("ibrahim2024", "table_09"),
]
#: Exhibits that draw fast, for `verify`.
QUICK = [("ibrahim2024", "figure_02"), ("ibrahim2024", "table_02")]
REPLAYED = "ibrahim2024/405m/pile--sp/replay-0.05/seed-0"
LEDGER = Ledger(
    scale="smoke",
    about="Verdicts over receipts.",
    counts={"held": 1, "failed": 0, "inconclusive": 0, "not run": 1},
    claims=[
        {
            "paper": "ibrahim2024", "id": "7", "statement": "Replay & less <forgetting>.", "source": "Table 2",
            "note": "", "verdict": "held", "decided_by": "seeds", "reason": "the test held",
            "analysis": "As it should.",
            "runs": ["405m/pile--sp/replay-0"],
            "tests": [
                {
                    "kind": "ordering", "says": "Falls with replay.", "verdict": "held", "only_at": None, "noise": 0.01,
                    "tolerance": None, "missing": [], "published_verdict": "held", "reason": "",
                    "effects": [{"says": "first above second", "value": 0.5, "noise": 0.01, "by": "seeds"}],
                    "measured": [
                        {"name": "no replay", "unit": "nats", "value": 3.64651, "noise": 0.0123, "published": 2.44,
                         "mark": "printed", "place": "Table 2, row 1"},
                    ],
                }
            ],
        },
        {
            "paper": "gupta2023", "id": "C1", "statement": "Warm-up does not matter.", "source": "Figure 1",
            "note": "n.", "verdict": "not run", "decided_by": "no measurement", "reason": "", "runs": [],
            "analysis": None, "tests": [],
        },
    ],
    sha256={},
    stale=[],
)  # fmt: skip


@pytest.fixture(scope="module")
def plan():
    return Plan(load_scale("smoke"))


@pytest.fixture(scope="module")
def made(plan, tmp_path_factory):
    """A folder with `results/` of made-up receipts and `figures/` of some exhibits, a ledger and the page."""
    root = tmp_path_factory.mktemp("report")
    make_results(plan, root / "results")
    for path in (root / "results").rglob("evaluation.json"):
        record = read_json(path)
        write_json(path, record | {"identity": evaluation_identity(plan, record["id"])[0]})
    for paper, key in DRAWN:
        draw(plan, paper, key, root / "results", root / "figures")
    write_ledger(LEDGER, root / "figures")
    write_report(plan, root / "results", root / "figures")
    return root


@pytest.fixture
def mine(made, tmp_path):
    """A copy to spoil."""
    return shutil.copytree(made, tmp_path / "copy")


class Page(HTMLParser):
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
    return Page((made / "figures/smoke/index.html").read_text(encoding="utf-8"))


# -- the page


def test_page_has_every_exhibit_with_its_command(plan, page):
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    for paper in plan.papers:
        for key, exhibit in load_exhibits(paper).items():
            assert f"{paper}-{key}" in ids
            suffix = "png" if key.startswith("figure") else "md"
            assert (
                f"snakemake --cores all figures/smoke/{paper}/{key}.{suffix} --config scale=smoke"
                in page.text
            )
            assert f"cpt-repro draw {paper}/{key} --scale smoke" in page.text
            assert exhibit.title in page.text
    declared = sum(len(load_exhibits(paper)) for paper in plan.papers)
    assert page.text.count("Not drawn.") == declared - len(DRAWN)
    assert f"{len(DRAWN)} of {declared} exhibits are drawn" in page.text
    assert page.opened == []


def test_page_shows_the_exhibits_as_drawn(made, page):
    images = [attrs for tag, attrs in page.tags if tag == "img"]
    assert len(images) == 2 and all(
        i["src"].startswith("data:image/png;base64,") and i["alt"] for i in images
    )
    for paper, key in DRAWN:
        about = read_json(made / f"figures/smoke/{paper}/{key}.json")
        assert " ".join(about["caption"].split()) in page.text
        for sha256 in about["sha256"].values():
            assert any(attrs.get("title") == f"SHA-256 {sha256}" for tag, attrs in page.tags if tag == "code")
        if key.startswith("table"):
            text = (made / f"figures/smoke/{paper}/{key}.md").read_text(encoding="utf-8")
            tables = pipe_tables(text)
            lines = sum(2 + len(table["rows"]) for table in tables)
            assert lines == sum(line.startswith("|") for line in text.splitlines()) > 2
            for table in tables:
                for row in [table["heads"], *table["rows"]]:
                    assert len(row) == len(table["heads"])
                    assert all(" ".join(cell.split()) in page.text for cell in row)


def test_page_shows_claims_and_counts(page):
    for told in (
        "Replay & less <forgetting>.",
        "Warm-up does not matter.",
        "Decided by seeds.",
        "3.647 0.012 2.44 nats",
    ):
        assert told in page.text
    assert "printed; Table 2, row 1" in page.text and "first above second: 0.5 ± 0.01 (seeds)" in page.text
    assert "Noise 0.01; by the published values held." in page.text and "As it should." in page.text
    assert "1 held 0 failed 0 inconclusive 1 not run" in page.text


def test_page_shows_lineage_environment_and_citation(plan, page):
    for segment in plan.segments.values():
        assert f"{segment.name} {segment.tokens:,} tokens" in page.text
    assert page.text.count("seed 0: done") == len(plan.segments)
    assert (
        f"{len(plan.segments)} of {len(plan.segments)} training segments have a current receipt" in page.text
    )
    assert "@misc{cpt_repro_smoke," in page.text and "eprint = {2403.08763}" in page.text


def test_page_tells_discrepancies(plan, page):
    from cpt_repro.declarations.published import load_discrepancies

    for paper in plan.papers:
        for found in load_discrepancies(paper):
            assert " ".join(found.what.split()) in page.text
            assert " ".join(found.default.split()) in page.text
            assert all(f"{paper}/{found.id}/{name}" in page.text for name in found.variants)


def test_page_loads_nothing_and_its_links_lead_somewhere(made, page):
    folder = made / "figures/smoke"
    ids = {attrs["id"] for _, attrs in page.tags if "id" in attrs}
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object", "embed", "base", "form"}
    style = re.search(
        r"<style>(.*?)</style>", (folder / "index.html").read_text(encoding="utf-8"), re.DOTALL
    )[1]
    assert "url(" not in style and "@import" not in style
    for tag, attrs in page.tags:
        assert not any(name.startswith("on") for name in attrs)
        assert tag == "img" or "src" not in attrs
        if href := attrs.get("href"):
            assert href[1:] in ids if href.startswith("#") else (folder / href).is_file(), href


def test_page_is_semantic(page):
    tags = dict(page.tags)
    assert tags["html"] == {"lang": "en"}
    assert {
        "header",
        "nav",
        "main",
        "section",
        "article",
        "figure",
        "figcaption",
        "caption",
        "footer",
    } <= set(tags)
    assert sum(tag == "h1" for tag, _ in page.tags) == 1
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h\d", tag)]
    assert all(below - above <= 1 for above, below in zip(levels, levels[1:], strict=False))
    assert all(attrs.get("scope") for tag, attrs in page.tags if tag == "th")


def test_page_escapes_text(plan, mine):
    sidecar = mine / "figures/smoke/ibrahim2024/table_02.json"
    write_json(sidecar, read_json(sidecar) | {"caption": "<script>alert('c')</script>"})
    table = sidecar.with_suffix(".md")
    table.write_text("**T.** c\n\n| a |\n| --- |\n| \\<img src=x\\> \\| \\_é\\_ |\n", encoding="utf-8")
    text = render(plan, mine / "results", mine / "figures")
    assert "<script" not in text and "<img src=x>" not in text
    shown = Page(text).text
    assert "<script>alert('c')</script>" in shown and "<img src=x> | _é_" in shown


def test_page_is_the_same_every_time(plan, made, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    there = (made / "figures/smoke/index.html").read_text(encoding="utf-8")
    assert render(plan, made / "results", made / "figures") == there
    assert str(made) not in there


def test_page_of_nothing_says_so(plan, tmp_path):
    path = write_report(plan, tmp_path / "results", tmp_path / "figures")
    text = Page(path.read_text(encoding="utf-8")).text
    assert "No ledger yet." in text and "Nothing is drawn yet." in text
    assert f"0 of {len(plan.segments)} training segments" in text and "seed 0: done" not in text


def test_page_names_missing_and_stale_records(plan, mine):
    receipt_path(mine / "results", "smoke", REPLAYED).unlink()
    other = receipt_path(mine / "results", "smoke", "ibrahim2024/405m/pile/seed-0")
    write_json(other, read_json(other) | {"identity": "0" * 64})
    draw(plan, "ibrahim2024", "table_02", mine / "results", mine / "figures")
    text = Page(render(plan, mine / "results", mine / "figures")).text
    assert "seed 0: not run" in text and "seed 0: stale" in text
    assert "1 of them miss records (marked “not run”)ibrahim2024/table_02" in text
    assert f"receipt {REPLAYED} not run" in text


def test_pipe_tables_undo_escapes():
    text = "**T.** c\n\n| a | b \\| c |\n| --- | --- |\n| \\\\ | \\*x\\* |\n|  | \\\\\\| |\n"
    text += "\n*Note\\_1:*\n\n| d |\n| --- |\n| - |\n"
    first, second = pipe_tables(text)
    assert first == {"title": "", "heads": ["a", "b | c"], "rows": [["\\", "*x*"], ["", "\\|"]]}
    assert second == {"title": "Note_1:", "heads": ["d"], "rows": [["-"]]}


# -- the page in a browser

MEASURE = (
    "<script>parent.postMessage([innerWidth, document.documentElement.scrollWidth, "
    "Math.max(...[...document.querySelectorAll('img')].map(i => i.naturalWidth))].join(' '), '*')</script></body>"
)


@pytest.mark.parametrize("width", [1280, 390])
def test_page_fits_the_window_in_chromium(made, tmp_path, width):
    chromium = shutil.which("chromium")
    if not chromium:
        pytest.skip("chromium is not installed (apt-get install chromium)")
    text = (made / "figures/smoke/index.html").read_text(encoding="utf-8")
    # Details opened, so that tables inside them count.
    opened = text.replace("<details>", "<details open>").replace("</body>", MEASURE)
    (tmp_path / "page.html").write_text(opened, encoding="utf-8")
    # A window has a least width of its own; a frame has not.
    frame = f"<iframe src='page.html' style='border: 0; width: {width}px; height: 1200px'></iframe>"
    wrapper = tmp_path / "wrapper.html"
    wrapper.write_text(f"<title></title><script>onmessage = e => document.title = e.data</script>{frame}")
    command = [
        chromium, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--disable-dev-shm-usage",
        f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=5000", "--window-size=1300,1200",
    ]  # fmt: skip
    picture = tmp_path / "page.png"
    run = subprocess.run(
        [*command, "--dump-dom", wrapper.as_uri()], capture_output=True, text=True, timeout=60
    )
    subprocess.run([*command, f"--screenshot={picture}", wrapper.as_uri()], capture_output=True, timeout=60)
    inner, needed, image = map(int, re.search(r"<title>(\d+) (\d+) (\d+)</title>", run.stdout).groups())
    assert inner == width
    assert needed <= inner, f"the page is {needed} pixels wide in a window of {inner}"
    assert image > 300
    assert picture.stat().st_size > 20_000


# -- verify


@pytest.fixture(scope="module")
def verifiable(plan, made, tmp_path_factory):
    """Few exhibits, the ledger and the page, all as the program makes them."""
    root = tmp_path_factory.mktemp("verify")
    shutil.copytree(made / "results", root / "results")
    for paper, key in QUICK:
        draw(plan, paper, key, root / "results", root / "figures")
    write_ledger(build_ledger(plan, root / "results"), root / "figures")
    write_report(plan, root / "results", root / "figures")
    return root


@pytest.fixture
def spoilt(verifiable, tmp_path):
    """A copy of it to spoil."""
    return shutil.copytree(verifiable, tmp_path / "copy")


def check(plan, root):
    lines = []
    found = verify.verify(plan, root / "results", root / "figures", QUICK, lines.append)
    return found, lines, "\n".join(verify.summary(found))


def test_verify_accepts_what_was_made(plan, verifiable):
    found, lines, text = check(plan, verifiable)
    assert found["ok"], text
    there = {
        path.relative_to(verifiable / "figures/smoke").as_posix()
        for path in (verifiable / "figures/smoke").rglob("*")
        if path.is_file() and path.name != "index.json"  # the record of the page's hash
    }
    assert set(found["files"]) == there
    assert text == f"{len(there)} files equal, 0 differ, 0 missing"
    assert "ibrahim2024/table_02: equal" in lines and found["receipts"]["missing"] == []


def test_verify_finds_changed_bytes_and_missing_files(plan, spoilt):
    folder = spoilt / "figures/smoke"
    png, table = folder / "ibrahim2024/figure_02.png", folder / "ibrahim2024/table_02.csv"
    raw = bytearray(png.read_bytes())
    raw[-20] ^= 1
    png.write_bytes(raw)
    (folder / "ibrahim2024/figure_02.svg").unlink()  # as in a clone; the sidecar has its hash
    (folder / "ibrahim2024/table_02.tex").unlink()
    (folder / "claims.md").unlink()
    table.write_text(table.read_text().replace("0", "1", 1))
    found, _, text = check(plan, spoilt)
    states = {name: file["state"] for name, file in found["files"].items() if file["state"] != "equal"}
    assert not found["ok"]
    # The page shows the image's bytes.
    assert states == {
        "ibrahim2024/figure_02.png": "differs",
        "ibrahim2024/table_02.csv": "differs",
        "claims.md": "missing",
    }
    assert (
        found["files"]["ibrahim2024/figure_02.svg"] | {"by": "recorded hash"}
        == found["files"]["ibrahim2024/figure_02.svg"]
    )
    assert file_digest(png) in text and found["files"]["ibrahim2024/figure_02.png"]["again"] in text
    assert "2 differ, 1 missing" in text


def test_verify_finds_a_hash_that_is_not_of_the_file(plan, spoilt):
    sidecar = spoilt / "figures/smoke/ibrahim2024/figure_02.json"
    about = read_json(sidecar)
    (sidecar.parent / "figure_02.svg").unlink()
    write_json(sidecar, about | {"files": about["files"] | {"figure_02.svg": "0" * 64}})
    found, _, _ = check(plan, spoilt)
    assert found["files"]["ibrahim2024/figure_02.svg"]["state"] == "differs"
    assert found["files"]["ibrahim2024/figure_02.json"]["state"] == "differs"


def test_verify_finds_a_changed_receipt(plan, spoilt):
    path = receipt_path(spoilt / "results", "smoke", REPLAYED)
    receipt = read_json(path)
    receipt["final"]["pile"]["loss"] += 0.1
    write_json(path, receipt)
    found, _, text = check(plan, spoilt)
    assert not found["ok"]
    assert found["changed"] == {"ibrahim2024/table_02": [f"receipt {REPLAYED}"]}
    assert found["files"]["ibrahim2024/table_02.csv"]["state"] == "differs"
    assert found["files"]["ibrahim2024/figure_02.png"]["state"] == "equal"
    assert f"drawn from other records than those there now: receipt {REPLAYED}" in text


def test_verify_names_missing_stale_unreadable_and_unplanned_receipts(plan, spoilt):
    results = spoilt / "results"
    stale, gone = (receipt_path(results, "smoke", f"gupta2023/410m/{name}/seed-0") for name in ("sp", "pile"))
    write_json(stale, read_json(stale) | {"identity": "0" * 64})
    gone.unlink()
    extra = receipt_path(results, "smoke", "gupta2023/elsewhere/seed-0")
    write_json(extra, {})
    receipt_path(results, "smoke", REPLAYED).write_text("{")
    found, _, text = check(plan, spoilt)
    receipts = found["receipts"]
    assert not found["ok"]
    assert receipts["stale"] == ["receipt gupta2023/410m/sp/seed-0"]
    assert receipts["missing"] == ["receipt gupta2023/410m/pile/seed-0"]
    assert list(receipts["unreadable"]) == [f"receipt {REPLAYED}"]
    assert receipts["unplanned"] == ["gupta2023/elsewhere/seed-0/receipt.json"]
    assert "ibrahim2024/table_02" in found["failed"]
    assert "1 records are not run yet" in text


def test_verify_command_tells_by_its_status(verifiable, spoilt, monkeypatch):
    monkeypatch.setattr(verify, "verify", functools.partial(verify.verify, keys=QUICK))
    folders = lambda root: ["--results", str(root / "results"), "--figures", str(root / "figures")]  # noqa: E731
    good = CliRunner().invoke(cli.app, ["verify", *folders(verifiable)])
    assert good.exit_code == 0, good.output
    assert good.output.splitlines()[-1].endswith("files equal, 0 differ, 0 missing")
    (spoilt / "figures/smoke/ibrahim2024/table_02.md").write_text("")
    bad = CliRunner().invoke(cli.app, ["verify", "--json", *folders(spoilt)])
    assert (
        bad.exit_code == 1
        and json.loads(bad.output)["files"]["ibrahim2024/table_02.md"]["state"] == "differs"
    )


# -- cite


def test_cite_an_exhibit(plan, made):
    told = citation.citation(plan, made / "figures", "ibrahim2024/table_02", "abc123")
    about = read_json(made / "figures/smoke/ibrahim2024/table_02.json")
    assert told["receipts"] == digest(about["sha256"]) and told["seeds"] == [0]
    for part in (__version__, "abc123", "Table 2", "scale smoke", "seed 0", told["receipts"], "2403.08763"):
        assert part in told["text"]
    own, paper = told["bibtex"].split("\n\n")
    assert own.startswith("@misc{cpt_repro_smoke_ibrahim2024_table_02,") and told["receipts"] in own
    assert paper.startswith("@article{ibrahim2024,") and "Thérien, Benjamin" in paper
    for entry in (own, paper):
        assert entry.count("{") == entry.count("}")
    assert "gupta" not in told["bibtex"].lower().split("@article")[0]


def test_cite_agrees_with_the_image(plan, made):
    told = citation.citation(plan, made / "figures", "gupta2023/figure_02", None)
    assert told["receipts"].encode() in (made / "figures/smoke/gupta2023/figure_02.png").read_bytes()
    assert told["receipts"] in (made / "figures/smoke/gupta2023/figure_02.svg").read_text(encoding="utf-8")


def test_cite_the_whole(plan, made, mine):
    told = citation.citation(plan, made / "figures", None, None)
    assert told["exhibit"] is None and told["bibtex"].count("@article{") == 2
    assert f"{len(DRAWN)} of" in told["text"] and "commit" not in told["text"]
    sidecar = mine / "figures/smoke/ibrahim2024/table_02.json"
    about = read_json(sidecar)
    write_json(sidecar, about | {"sha256": about["sha256"] | {f"receipt {REPLAYED}": "0" * 64}})
    assert citation.citation(plan, mine / "figures", None, None)["receipts"] != told["receipts"]


@pytest.mark.parametrize(
    ("exhibit", "parts"),
    [
        ("figure_02", ["several papers", "gupta2023/figure_02 or ibrahim2024/figure_02"]),
        ("ibrahim2024/figur_05", ["unknown", "Did you mean 'ibrahim2024/figure_05'"]),
        ("gupta2023/table_02", ["unknown", "Did you mean"]),
        ("table_03", ["not drawn", "cpt-repro draw ibrahim2024/table_03 --scale smoke"]),
    ],
)
def test_cite_refuses(plan, made, exhibit, parts):
    with pytest.raises(UserError) as error:
        citation.citation(plan, made / "figures", exhibit, None)
    assert all(part in str(error.value) for part in parts)


def test_cite_of_nothing_says_what_draws(plan, tmp_path):
    with pytest.raises(UserError, match="cpt-repro draw all --scale smoke"):
        citation.citation(plan, tmp_path, None, None)


def test_cite_command(made):
    where = ["--figures", str(made / "figures")]
    text = CliRunner().invoke(cli.app, ["cite", "table_02", *where])
    assert text.exit_code == 0 and "Table 2" in text.output and "@misc{" in text.output
    told = json.loads(CliRunner().invoke(cli.app, ["cite", "--json", *where]).output)
    assert told["scale"] == "smoke" and told["version"] == __version__


def test_citation_file_has_the_version():
    assert read_yaml(ROOT / "CITATION.cff")["version"] == __version__


def test_template_is_packaged():
    declared = (ROOT / "pyproject.toml").read_text()
    (patterns,) = re.findall(r"^cpt_repro = \[(.*)\]$", declared, re.MULTILINE)
    packaged = [
        path for pattern in re.findall(r'"([^"]+)"', patterns) for path in (ROOT / "cpt_repro").glob(pattern)
    ]
    assert Path(ROOT / "cpt_repro/report/page.html.j2") in packaged
