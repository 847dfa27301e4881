"""Figures and tables: declarations that hold together, files that are whole, the same bytes from the same receipts."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from exhibit_receipts import make_results

from cpt_repro.declarations.scale import load_scale
from cpt_repro.errors import UserError
from cpt_repro.exhibits import declarations, tables, typeset
from cpt_repro.declarations.exhibits import Anchors, load_declarations, load_exhibits, needs
from cpt_repro.exhibits.draw import draw
from cpt_repro.records.lookup import Records
from cpt_repro.files import file_digest, read_json
from cpt_repro.planning.plan import Plan
from cpt_repro.declarations.published import Published, PublishedTable, Value
from cpt_repro.records.receipts import receipt_path

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
    for paper, (drawn, written) in expected.items():
        keys = [f"figure_{n:02d}" for n in range(1, drawn + 1)] + [
            f"table_{n:02d}" for n in range(1, written + 1)
        ]
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


def _pipe_tables(text):
    """The pipe tables of a Markdown text as lists of rows of cells."""
    blocks = re.findall(r"(?:^\|.*\n)+", text, flags=re.M)
    return [[re.split(r"(?<!\\)\|", line)[1:-1] for line in block.splitlines()] for block in blocks]


@pytest.mark.parametrize(("paper", "key"), _every("table"))
def test_every_cell_has_both_values_or_a_state(plan, results, tmp_path, paper, key):
    csv_path, markdown, tex, about = draw(plan, paper, key, results, tmp_path)
    frame, states = pd.read_csv(csv_path, keep_default_na=False), 0
    assert frame.columns.is_unique
    if paper == "ibrahim2024" and int(key[-2:]) in ROWS:
        assert len(frame) == ROWS[int(key[-2:])]
    for head in frame.columns:
        if not head.endswith(", state"):
            continue
        name = head.removesuffix(", state")
        (here,) = (column for column in frame if column.startswith(f"{name}, reproduced ("))
        for published, reproduced, state in zip(
            frame[f"{name}, published"], frame[here], frame[head], strict=True
        ):
            told, _, unsaid = state.partition("; ")
            assert unsaid == ("" if published != "" else "not published")
            there = r"(reproduced at scale smoke with 1 seed|(used|planned) at scale smoke)"
            assert re.fullmatch(there if reproduced != "" else "no counterpart|not built", told), (
                head,
                state,
            )
            states += 1
    assert states or load_exhibits(paper)[key].kind == "generations"
    for table in _pipe_tables(markdown.read_text(encoding="utf-8")):
        assert len({len(row) for row in table}) == 1 and all(
            cell.strip() for row in table[2:] for cell in row
        )
    # No value of this scale stands under a heading of the paper's.
    heads = [head for table in _pipe_tables(markdown.read_text(encoding="utf-8")) for head in table[0]]
    assert not [head for head in heads if "(published" in head and "smoke" in head and "→" not in head]
    for head in [*frame.columns, *heads]:
        if re.search(
            r"reproduced|error|noise|seeds|difference|Trained|Generation|Text|→|, rank \(|, effect \(", head
        ):
            assert "smoke scale" in head, head
        elif re.match(r"D0|D1|AVG|English|continuation|last_word", head):
            assert re.search(r"published|mark|state|ranked rows|smoke scale", head), head
    assert read_json(about)["files"] == {path.name: file_digest(path) for path in (csv_path, markdown, tex)}
    _check_tex(tex.read_text(encoding="utf-8"))


def _check_tex(text):
    body = "\n".join(re.sub(r"(?<!\\)%$", "", line) for line in text.splitlines() if not line.startswith("%"))
    body = body.replace(r"\\", "\n")  # ends of lines
    assert body.isascii() or not re.search("[^\u00c0-\u017f\x00-\x7f]", body)
    assert not re.search(r"(?<!\\)[%#]", body)
    plain = body.replace(r"\{", "").replace(r"\}", "")
    assert plain.count("{") == plain.count("}")
    assert len(re.findall(r"(?<!\\)\$", body)) % 2 == 0
    for part in text.split(r"\toprule")[1:]:
        rows = part[: part.index(r"\bottomrule")].strip().split("\\\\\n")
        assert len({len(re.findall(r"(?<!\\)&", row)) for row in rows if "&" in row}) == 1


@pytest.mark.skipif(not shutil.which("pdflatex"), reason="pdflatex is not installed")
def test_the_tables_compile(plan, results, tmp_path):
    paths = [draw(plan, paper, key, results, tmp_path)[2] for paper, key in _every("table")]
    packages = r"\usepackage[T1]{fontenc}\usepackage[margin=2cm]{geometry}\usepackage{booktabs,array,graphicx,rotating}"
    pages = "".join(rf"\input{{{path.relative_to(tmp_path)}}}\clearpage" for path in paths)
    text = rf"\documentclass[10pt,a4paper]{{article}}{packages}\begin{{document}}{pages}\end{{document}}"
    (tmp_path / "all.tex").write_text(text, encoding="utf-8")
    command = ["pdflatex", "-draftmode", "-halt-on-error", "-interaction=nonstopmode", "all.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, errors="replace")
    assert done.returncode == 0, done.stdout[-2000:]
    log = (tmp_path / "all.log").read_text(errors="replace")
    assert not re.findall(r"Float too large.*|Missing character.*", log)
    assert all(float(points) < 5 for points in re.findall(r"Overfull \\[hv]box \(([\d.]+)pt", log))


def _column(losses, published, here, errors=None):
    """A column of compared values and its rows: the union and three shares of replay."""
    names = ["union", "r-0", "r-5", "r-50"]
    cells = [
        typeset.Cell(
            None if said is None else Value(value=said, mark="printed", place="here"),
            None if value is None else typeset.Measured(value, "", error, None, 1, 3),
            "",
        )
        for said, value, error in zip(published, here, errors or [0.001] * 4, strict=True)
    ]
    column = typeset.Values("D0", "", "", "pocket", cells, 2)
    anchors = (Anchors(new="sp", model="405m", zero="union", one="r-0", says="share of the gap"),)
    tables._compare(column, [(name, "sp", "405m") for name in names], anchors, losses)
    return cells


def test_ranks_and_effects_by_hand():
    union, without, five, fifty = _column(True, [2.17, 2.44, 2.23, 2.17], [3.50, 4.00, 3.60, 3.4999])
    assert [c.ranks for c in (union, without, five, fifty)] == [(1, 1, 4), (4, 4, 4), (3, 3, 4), (1, 1, 4)]
    assert union.effects == (0, 0) and without.effects == (1, 1)
    assert five.effects == pytest.approx((0.06 / 0.27, 0.2)) and fifty.effects[1] == pytest.approx(-0.0002)
    assert all(cell.difference is None for cell in (union, without, five, fifty))
    # Scores: the highest is first; they have no effects. A row without one of its values is out of the ranking.
    cells = _column(False, [30.0, 20.0, 40.0, None], [50.0, 60.0, None, 10.0])
    assert [c.ranks for c in cells] == [(1, 2, 2), (2, 1, 2), None, None]
    assert all(cell.effects == (None, None) for cell in cells)
    # Anchors that are equal in print, or closer than the noise here, carry no effect.
    assert _column(True, [2.5, 2.5, 2.6, 2.7], [3.5, 4.0, 3.6, 3.7])[2].effects == (None, pytest.approx(0.2))
    assert _column(True, [2.5, 2.6, 2.6, 2.7], [3.5, 4, 3.6, 3.7], [0.2] * 4)[2].effects == (
        pytest.approx(1),
        None,
    )


def test_a_table_by_hand_from_receipts_to_csv(plan, results, tmp_path):
    records = Records(plan, "ibrahim2024", results)
    names = ["405m/pile+sp", "405m/pile--sp/replay-0", "405m/pile--sp/replay-0.05"]
    union, without, five = (records.receipts(name)[0].final["pile"].loss for name in names)
    frame = pd.read_csv(draw(plan, "ibrahim2024", "table_02", results, tmp_path)[0])
    row = frame.loc[3]
    assert row["D0, published"] == 2.23 and row["D0, mark"] == "printed" and row["D0, published rank"] == 4
    assert row["D0, reproduced (smoke_upstream, smoke scale)"] == pytest.approx(five, rel=1e-9)
    assert row["D0, effect (smoke scale)"] == pytest.approx((five - union) / (without - union), rel=1e-9)
    assert row["D0, published effect"] == pytest.approx((2.23 - 2.17) / (2.44 - 2.17), rel=1e-9)
    assert row["D0, ranked rows"] == 7 and row["D0, noise of the validation set (smoke scale)"] == 0.02
    losses = frame["D0, reproduced (smoke_upstream, smoke scale)"]
    assert list(frame["D0, rank (smoke scale)"][:7]) == list(losses[:7].rank(method="min"))
    assert not [head for head in frame if "difference" in head]
    pairs = tables.pairs(load_exhibits("ibrahim2024")["table_02"], records)
    assert len(pairs) == 3 * 14 and len({group for group, _, _ in pairs}) == 3 * 2
    assert ("D0, sp, 405m", 2.23, five) in pairs
    # A run in two rows counts once; domains and settings are inputs.
    assert len(tables.pairs(load_exhibits("ibrahim2024")["table_12"], records)) == 3 * (36 - 3)
    assert tables.pairs(load_exhibits("ibrahim2024")["table_13"], records) == []


def test_at_scale_paper_differences_are_shown(tmp_path):
    plan = Plan(load_scale("smoke").model_copy(update={"name": "paper"}))
    make_results(plan, tmp_path / "results")
    frame = pd.read_csv(draw(plan, "ibrahim2024", "table_02", tmp_path / "results", tmp_path)[0])
    here = frame["D0, reproduced (the Pile, paper scale)"]
    assert list(frame["D0, difference (paper scale)"]) == pytest.approx(
        list(here - frame["D0, published"]), rel=1e-6
    )
    text = draw(plan, "ibrahim2024", "table_02", tmp_path / "results", tmp_path)[1].read_text(
        encoding="utf-8"
    )
    assert "D0 (published: the Pile) | D0 (reproduced: the Pile) | D0 (difference) |" in text
    settings = pd.read_csv(
        draw(plan, "ibrahim2024", "table_13", tmp_path / "results", tmp_path)[0], dtype=str
    )
    assert list(settings["405M, difference (paper scale)"][2:6]) == ["differs", "differs", "differs", "equal"]


def test_what_failed_is_told_from_what_was_not_run(plan, tmp_path):
    gone = ("405m/pile--sp/replay-0.05", "405m/pile--sp/replay-0.1", "405m/ties/sp-0.5")
    make_results(plan, tmp_path / "results", leave_out=gone)
    place = receipt_path(tmp_path / "results", "smoke", plan.ids("ibrahim2024", gone[0])[0])
    place.parent.mkdir(parents=True, exist_ok=True)
    place.with_name("failure.json").write_text("{}", encoding="utf-8")
    paths = draw(plan, "ibrahim2024", "table_02", tmp_path / "results", tmp_path)
    frame = pd.read_csv(paths[0], keep_default_na=False)
    assert list(frame["D0, state"][3:5]) == ["failed", "not run"]
    assert list(frame["D0, published"][3:5]) == [2.23, 2.21]
    assert [str(count) for count in frame["D0, ranked rows"][2:5]] == ["5.0", "", ""]
    lines = paths[1].read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if "(5% Replay)" in line and "SP" in line][0].count("| failed |") == 3


def test_misprints_are_shown_and_not_compared(plan, results, tmp_path):
    paths = draw(plan, "ibrahim2024", "table_03", results, tmp_path)
    row = pd.read_csv(paths[0]).loc[5]
    assert (
        row["D1, published"] == 2.70
        and row["D1, mark"] == "printed; misprint"
        and pd.isna(row["D1, published rank"])
    )
    assert row["D0, ranked rows"] == 5 and row["D0, mark"] == "printed"
    text = paths[1].read_text(encoding="utf-8")
    assert "| 2.70ᵐ |" in text and "ᵐ: a misprint, not compared." in text
    pairs = tables.pairs(load_exhibits("ibrahim2024")["table_03"], Records(plan, "ibrahim2024", results))
    assert [sum(group == f"{column}, german, 405m" for group, *_ in pairs) for column in ("D0", "D1")] == [
        5,
        4,
    ]


def test_published_marks_are_explained(plan, results, tmp_path, monkeypatch):
    rows = tuple(("", 2.4, 2.5 + n, 2.0) for n in range(14))
    heads = ("Training tokens", "D0 Pile", "D1 SP/German", "AVG")
    table = PublishedTable(mark="printed", place="p. 1", columns=heads, rows=rows, marks={"AVG": "derived"})
    monkeypatch.setattr(
        tables, "load_published", lambda paper: Published(source="made up", tables={"table_02": table})
    )
    paths = draw(plan, "ibrahim2024", "table_02", results, tmp_path)
    text = paths[1].read_text(encoding="utf-8")
    assert "Published values: made up. ᵃ: derived." in text and "| 2.0ᵃ |" in text and "| 2.4 |" in text
    assert r"2.0$^{\mathrm{a}}$" in paths[2].read_text(encoding="utf-8")


def test_symbols_are_escaped_for_tex(plan, results, tmp_path):
    text = draw(plan, "ibrahim2024", "table_03", results, tmp_path)[2].read_text(encoding="utf-8")
    assert r"600B Pile $\cup$ SP" in text and r"300B Pile $\rightarrow$ 300B SP (5\% Replay)" in text
    assert r"smoke\_upstream" in text


def test_what_was_not_run_is_marked(plan, tmp_path):
    gone = ("405m/pile--sp/replay-0.05", "405m/pile+sp", "405m/ties/sp-0.5")
    make_results(plan, tmp_path / "results", leave_out=gone)
    files = {
        key: draw(plan, "ibrahim2024", key, tmp_path / "results", tmp_path)
        for key in ("table_02", "table_06")
    }
    for suffix in range(3):
        assert "not run" in files["table_02"][suffix].read_text(encoding="utf-8")
    row = next(
        line for line in files["table_06"][1].read_text("utf-8").splitlines() if "300B SP | 50 |" in line
    )
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
    assert (
        "no counterpart of the model 10b" in about["caption"]
        and "Lines are means over seeds" in about["caption"]
    )
    assert len(about["no_counterpart"]) == 5 and len(about["sha256"]) == 15
    table = draw(plan, "ibrahim2024", "table_04", tmp_path / "results", tmp_path)
    rows = pd.read_csv(table[0])
    assert rows["D0, state"][0] == "no counterpart" and rows["D0, published"][0] == 1.75
    assert rows["D0, state"][5] == "reproduced at scale smoke with 3 seeds"
    assert rows["D0, seeds (smoke scale)"][5] == 3 and rows["D0, standard error (smoke scale)"][5] > 0
    assert "[3] |" in table[1].read_text(encoding="utf-8")


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
        "from cpt_repro.planning.plan import Plan\nfrom cpt_repro.exhibits.draw import draw\n"
        "draw(Plan(load_scale('smoke')), 'ibrahim2024', 'table_02', Path(sys.argv[1]), Path(sys.argv[2]))\n"
        "assert not {'matplotlib', 'torch', 'streaming', 'transformers'} & set(sys.modules)\n"
    )
    subprocess.run(
        [sys.executable, "-c", code, str(results), str(tmp_path)], check=True, cwd=Path(__file__).parent
    )
