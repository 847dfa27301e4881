"""Figures and tables: declarations that hold together, files that are whole, the same bytes from the same receipts."""

import csv
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from exhibit_receipts import make_results

from cpt_repro.config import load_scale
from cpt_repro.errors import UserError
from cpt_repro.exhibits import declarations
from cpt_repro.exhibits.declarations import load_declarations, load_exhibits, needs
from cpt_repro.exhibits.draw import draw
from cpt_repro.exhibits.records import Records
from cpt_repro.files import read_json
from cpt_repro.plan import Plan

PAPERS = ("gupta2023", "ibrahim2024")
#: Curves in each panel, by the papers' legends; lines of reference and diagrams not counted.
CURVES = {
    "gupta2023": {
        "figure_01": [4, 4], "figure_02": [5], "figure_03": [5], "figure_04": [4], "figure_05": [4], "figure_06": [4],
        "figure_07": [6], "figure_08": [6], "figure_09": [7, 7],
    },
    "ibrahim2024": {
        "figure_03": [4, 4, 4, 4], "figure_04": [5, 5, 5, 5], "figure_05": [6, 6, 6, 6], "figure_06": [5, 5, 5, 5],
        "figure_07": [5, 5, 5, 5], "figure_08": [5, 5], "figure_09": [3, 3], "figure_10": [5, 5], "figure_11": [1, 1],
        "figure_12": [6, 6], "figure_13": [2, 2],
    },
}  # fmt: skip
#: Rows of each table of Ibrahim et al.; prompts and generations apart.
ROWS = {2: 14, 3: 10, 4: 10, 5: 10, 6: 18, 7: 7, 8: 5, 9: 25, 10: 25, 11: 17, 12: 36, 13: 18, 14: 13}


@pytest.fixture(scope="module")
def plan():
    return Plan(load_scale("smoke"))


@pytest.fixture(scope="module")
def results(plan, tmp_path_factory):
    folder = tmp_path_factory.mktemp("receipts")
    make_results(plan, folder)
    return folder


def _every(kind=""):
    return [(paper, key) for paper in PAPERS for key in load_exhibits(paper) if key.startswith(kind)]


def _panels(exhibit):
    return exhibit.panels if exhibit.kind == "curves" else (exhibit,)


def test_every_exhibit_of_both_papers_is_declared():
    expected = {"gupta2023": (9, 1), "ibrahim2024": (13, 14)}
    for paper, (figures, tables) in expected.items():
        keys = [f"figure_{n:02d}" for n in range(1, figures + 1)] + [f"table_{n:02d}" for n in range(1, tables + 1)]
        assert list(load_exhibits(paper)) == keys


@pytest.mark.parametrize("paper", PAPERS)
def test_panels_and_curves_are_those_of_the_paper(paper):
    for key, counts in CURVES[paper].items():
        assert [len(panel.curves) for panel in _panels(load_exhibits(paper)[key])] == counts, key


def test_everything_trained_is_shown(plan):
    for paper in PAPERS:
        shown = {name for e in load_exhibits(paper).values() for name in [*e.runs, *e.evaluations]}
        trained = set(plan.papers[paper].runs) | set(plan.papers[paper].merges)
        # Gupta's upstream model was downloaded; here it is trained, and only its children are drawn.
        assert trained - shown <= {"410m/pile"}


def test_needs_name_segments_and_merges(plan):
    segments, evaluations = needs(plan, "ibrahim2024", load_exhibits("ibrahim2024")["table_06"])
    assert segments == [] and "ibrahim2024/405m/ties/sp-0.25/seed-0" in evaluations
    segments, _ = needs(plan, "ibrahim2024", load_exhibits("ibrahim2024")["figure_11"])
    assert segments[0] == "ibrahim2024/405m/pile--sp-domains/stage-1/seed-0" and len(segments) == 8
    assert set(segments) <= set(plan.segments)


def test_unknown_names_are_refused_with_a_hint(monkeypatch, tmp_path, plan):
    with pytest.raises(UserError, match="figure_04"):
        draw(plan, "gupta2023", "figure_4", tmp_path, tmp_path)
    with pytest.raises(UserError, match="gupta2023"):
        draw(plan, "gupta2032", "figure_04", tmp_path, tmp_path)
    text = (declarations.PAPERS / "gupta2023" / "exhibits.yaml").read_text(encoding="utf-8")
    for wrong, message in (
        (text.replace("[410m/pile--sp/constant-3e-5,", "[410m/pile--sp/constant-3e5,", 1), "constant-3e-5"),
        (text.replace("corpus: sp", "corpsu: sp"), "corpus"),
        (text.replace("410m/sp: {label", "410m/spp: {label"), "styles"),
    ):
        folder = tmp_path / "gupta2023"
        folder.mkdir(exist_ok=True)
        (folder / "exhibits.yaml").write_text(wrong, encoding="utf-8")
        monkeypatch.setattr(declarations, "PAPERS", tmp_path)
        with pytest.raises(UserError, match=message) as caught:
            load_declarations.__wrapped__("gupta2023")
        assert "exhibits.yaml" in str(caught.value)


@pytest.mark.parametrize("paper", PAPERS)
def test_curves_of_a_panel_can_be_told_apart(paper):
    declared = load_declarations(paper)
    for key, exhibit in declared.exhibits.items():
        if exhibit.kind not in ("curves", "plane"):
            continue
        for panel in _panels(exhibit):
            looks = [{declared.style(run) for run in curve.runs} for curve in panel.curves]
            assert all(len(look) == 1 for look in looks), key  # one look along a chain
            looks = [look.pop() for look in looks]
            labels = [curve.label or look.label for curve, look in zip(panel.curves, looks, strict=True)]
            assert len(set(labels)) == len(labels), key
            assert len({look.colour for look in looks}) == len(looks), key
            assert len({(look.dash, look.marker) for look in looks}) == len(looks), key
            reference = getattr(panel, "reference", None)
            if reference:
                assert declared.style(reference.run).colour not in {look.colour for look in looks}, key


def test_a_run_has_one_look_and_every_pattern_is_used():
    for paper in PAPERS:
        declared = load_declarations(paper)
        drawn = {
            r for e in declared.exhibits.values() if e.kind in ("curves", "plane", "bars") for r in e.runs
        }  # `style` depends on the run's name alone, so the look is the same everywhere
        used = {id(declared.style(run)) for run in drawn}
        unused = {name for name, look in declared.styles.items() if id(look) not in used}
        assert unused <= {"410m/pile"}


@pytest.mark.parametrize(
    ("paper", "key"),
    [("gupta2023", k) for k in ("figure_01", "figure_06")]
    + [("ibrahim2024", k) for k in ("figure_01", "figure_02", "figure_05", "figure_10", "figure_11")],
)
def test_figures_are_drawn(plan, results, tmp_path, paper, key):
    paths = draw(plan, paper, key, results, tmp_path)
    assert [path.suffix for path in paths] == [".png", ".svg", ".json"]
    assert all(path.stat().st_size > 1000 for path in paths[:2])
    metadata = paths[1].read_text(encoding="utf-8").split("</metadata>")[0]
    assert "<dc:title>" in metadata and "dc:date" not in metadata and "Matplotlib" not in metadata
    about = read_json(paths[2])
    assert about["missing"] == [] and about["caption"].startswith(load_exhibits(paper)[key].see)
    segments, evaluations = needs(plan, paper, load_exhibits(paper)[key])
    assert len(about["sha256"]) == len(segments) + len(evaluations)


@pytest.mark.parametrize(("paper", "key"), _every("table"))
def test_tables_are_written(plan, results, tmp_path, paper, key):
    paths = draw(plan, paper, key, results, tmp_path)
    assert [path.suffix for path in paths] == [".csv", ".md", ".tex", ".json"]
    with open(paths[0], newline="", encoding="utf-8") as stream:
        heads, *rows = csv.reader(stream)
    assert len(set(heads)) == len(heads) and all(len(row) == len(heads) for row in rows)
    if paper == "ibrahim2024" and int(key[-2:]) in ROWS:
        assert len(rows) == ROWS[int(key[-2:])]
    assert "not run" not in paths[1].read_text(encoding="utf-8")
    # No value of this scale stands under a heading of the paper's.
    for head in heads:
        if re.match(r"D0|D1|AVG|continuation|last_word|Trained|English", head):
            assert "smoke scale" in head, head
    _check_tex(paths[2].read_text(encoding="utf-8"))


def _check_tex(text):
    body = "\n".join(line for line in text.splitlines() if not line.startswith("%"))
    assert body.isascii() or not re.search("[^\u00c0-\u017f\x00-\x7f]", body)
    assert not re.search(r"(?<!\\)[%#]", body)
    plain = body.replace(r"\{", "").replace(r"\}", "")
    assert plain.count("{") == plain.count("}")
    assert len(re.findall(r"(?<!\\)\$", body)) % 2 == 0
    assert re.findall(r"\\begin{(\w+)", body) == re.findall(r"\\end{(\w+)", body)[::-1]
    rows = body[body.index(r"\midrule") : body.index(r"\bottomrule")].strip().split("\\\\\n")
    columns = len(re.findall(r"p\{", body[: body.index(r"\toprule")]))
    assert {len(re.findall(r"(?<!\\)&", row)) + 1 for row in rows if "&" in row} == {columns}


def test_symbols_are_escaped_for_tex(plan, results, tmp_path):
    text = draw(plan, "ibrahim2024", "table_03", results, tmp_path)[2].read_text(encoding="utf-8")
    assert r"600B Pile $\cup$ SP" in text and r"300B Pile $\rightarrow$ 300B SP (5\% Replay)" in text
    assert r"smoke\_upstream" in text


def test_what_was_not_run_is_marked(plan, tmp_path):
    gone = ("405m/pile--sp/replay-0.05", "405m/pile+sp", "405m/ties/sp-0.5")
    make_results(plan, tmp_path / "results", leave_out=gone)
    files = {key: draw(plan, "ibrahim2024", key, tmp_path / "results", tmp_path) for key in ("table_02", "table_06")}
    for suffix in range(3):
        assert "not run" in files["table_02"][suffix].read_text(encoding="utf-8")
    row = next(line for line in files["table_06"][1].read_text().splitlines() if "300B SP | 50 |" in line)
    assert row.count("not run") == 3
    *_, sidecar = draw(plan, "ibrahim2024", "figure_05", tmp_path / "results", tmp_path)
    assert read_json(sidecar)["missing"] == [
        "receipt ibrahim2024/405m/pile+sp/seed-0",
        "receipt ibrahim2024/405m/pile--sp/replay-0.05/seed-0",
    ]
    assert "Not run: 2 of 14 records." in read_json(sidecar)["caption"]


@pytest.mark.parametrize(
    ("paper", "key"), [("gupta2023", "figure_04"), *[("ibrahim2024", f"figure_{n:02d}") for n in (1, 3, 11)]]
)
def test_nothing_was_run_at_all(plan, tmp_path, paper, key):
    paths = draw(plan, paper, key, tmp_path / "nothing", tmp_path)
    assert all(path.stat().st_size for path in paths)


def test_several_seeds_give_means_and_no_counterparts_are_told(tmp_path):
    scale = load_scale("smoke")
    models = {name: None if name == "10b" else size for name, size in scale.models.items()}
    plan = Plan(scale.model_copy(update={"seeds": (0, 1, 2), "models": models}))
    make_results(plan, tmp_path / "results")
    png, *_, sidecar = draw(plan, "ibrahim2024", "figure_07", tmp_path / "results", tmp_path)
    about = read_json(sidecar)
    assert "no counterpart of the model 10b" in about["caption"] and "Lines are means over seeds" in about["caption"]
    assert len(about["no_counterpart"]) == 5 and len(about["sha256"]) == 15
    table = draw(plan, "ibrahim2024", "table_04", tmp_path / "results", tmp_path)
    with open(table[0], newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert rows[0]["D0 (smoke_upstream, smoke scale)"] == "no counterpart"
    assert rows[5]["D0 (smoke_upstream, smoke scale), seeds"] == "3"
    assert float(rows[5]["D0 (smoke_upstream, smoke scale), standard error"]) > 0


def test_a_receipt_of_another_plan_is_told(plan, results):
    other = Plan(load_scale("smoke").model_copy(update={"threads": 2}))
    records = Records(other, "ibrahim2024", results)
    assert len(records.receipts("405m/pile")) == 1
    assert records.stale == {"receipt ibrahim2024/405m/pile/seed-0"}


def test_the_same_receipts_give_the_same_bytes(results, tmp_path):
    code = (
        "import sys, pathlib\n"
        "from cpt_repro.config import load_scale\nfrom cpt_repro.plan import Plan\n"
        "from cpt_repro.exhibits.draw import draw\n"
        "plan, results, out = Plan(load_scale('smoke')), *map(pathlib.Path, sys.argv[1:])\n"
        "for key in ('figure_05', 'figure_01', 'table_12', 'table_09'):\n"
        "    draw(plan, 'ibrahim2024', key, results, out)\n"
        "draw(plan, 'gupta2023', 'figure_04', results, out)\n"
    )
    for k, (zone, language) in enumerate((("UTC", "C"), ("Asia/Kathmandu", "de_DE.UTF-8"))):
        settings = {"PYTHONHASHSEED": str(k), "TZ": zone, "LC_ALL": language, "SOURCE_DATE_EPOCH": str(k)}
        command = [sys.executable, "-c", code, str(results), str(tmp_path / str(k))]
        subprocess.run(command, check=True, env=os.environ | settings, cwd=tmp_path)
    files = sorted(path.relative_to(tmp_path / "0") for path in (tmp_path / "0").rglob("*.*"))
    assert len(files) == 3 * 3 + 2 * 4
    for path in files:
        assert (tmp_path / "0" / path).read_bytes() == (tmp_path / "1" / path).read_bytes(), path


def test_a_table_does_not_wait_for_matplotlib(results, tmp_path):
    code = (
        "import sys\nfrom pathlib import Path\nfrom cpt_repro.config import load_scale\n"
        "from cpt_repro.plan import Plan\nfrom cpt_repro.exhibits.draw import draw\n"
        "draw(Plan(load_scale('smoke')), 'ibrahim2024', 'table_02', Path(sys.argv[1]), Path(sys.argv[2]))\n"
        "assert not {'matplotlib', 'torch', 'streaming', 'transformers'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(results), str(tmp_path)], check=True, cwd=Path(__file__).parent)
