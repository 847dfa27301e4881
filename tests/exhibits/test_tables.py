"""Tables: every cell with both values or a state, ranks and effects by hand, three kinds of files."""

import json
import math
import re
import shutil
import subprocess

import numpy as np
import pandas as pd
import pytest

from cpt_repro.declarations.published import Value
from cpt_repro.declarations.scale import load_scale
from cpt_repro.exhibits.base import TableKind
from cpt_repro.exhibits.catalogue import Catalogue
from cpt_repro.exhibits.draw import draw
from cpt_repro.exhibits.rows import Anchors, Key, compare
from cpt_repro.exhibits.typeset import (
    PAGE,
    Cell,
    Part,
    Table,
    Texts,
    Values,
    count,
    decimals,
    escape_tex,
    over_seeds,
    write_csv,
    write_markdown,
    write_tex,
)
from cpt_repro.files import read_json
from cpt_repro.planning.plan import Plan
from cpt_repro.records.uncertainty import Sample, difference

#: Rows of each table of Ibrahim et al.; prompts and generations apart.
ROWS = {2: 14, 3: 10, 4: 10, 5: 10, 6: 18, 7: 7, 8: 5, 9: 25, 10: 25, 11: 17, 12: 36, 13: 18, 14: 13}
FIVE, UNION = "ibrahim2024/405m/pile--sp/replay-0.05/", "ibrahim2024/405m/pile+sp/"
TIES = "ibrahim2024/405m/ties/sp-0.5/"


@pytest.fixture
def drawn(pocket, tmp_path):
    """`drawn(exhibit, gone)`: the files of an exhibit by suffix, the CSV also as a frame."""

    def make(exhibit, gone=(), **changes):
        made = pocket(gone, **changes)
        paths = draw(made.catalogue, made.records, *exhibit.split("/"), out=tmp_path)
        files = {path.suffix[1:]: path for path in paths}
        return files | {"frame": pd.read_csv(files["csv"], keep_default_na=False)}

    return make


def pipe_tables(text):
    """The pipe tables of a Markdown text as lists of rows of cells."""
    blocks = re.findall(r"(?:^\|.*\n)+", text, flags=re.M)
    return [[re.split(r"(?<!\\)\|", line)[1:-1] for line in block.splitlines()] for block in blocks]


def check_states(frame):
    """Every state says what its row has; returns how many there are."""
    states = 0
    for head in (head for head in frame if head.endswith(", state")):
        name = head.removesuffix(", state")
        (here,) = (column for column in frame if column.startswith(f"{name}, reproduced ("))
        for published, ours, state in zip(frame[f"{name}, published"], frame[here], frame[head], strict=True):
            state, _, unpublished = state.partition("; ")
            assert unpublished == ("" if published != "" else "not published")
            seeds = r"reproduced at scale pocket with (1 seed|3 seeds)"
            there = rf"{seeds}|(used|built) at scale pocket"
            assert re.fullmatch(there if ours != "" else "no counterpart|not measured", state), (head, state)
            states += 1
    return states


def check_headings(heads):
    """No value of this scale stands under a heading of the paper's, and no other way round."""
    ours = r"reproduced|half-width|seeds|difference|Trained|Generation|Text|rank \(|, effect \("
    for head in heads:
        if re.search(ours, head):
            assert "pocket scale" in head, head
        elif re.match(r"D0|D1|AVG|English|continuation|last_word", head):
            assert re.search(r"published|mark|state|ranked rows|agrees|pocket scale", head), head
        assert not ("(published" in head and "pocket" in head and "→" not in head)


def check_tex(text):
    """Balanced braces and dollars, nothing unescaped, rows of equal length."""
    body = "\n".join(re.sub(r"(?<!\\)%$", "", line) for line in text.splitlines() if not line.startswith("%"))
    body = body.replace(r"\\", "\n")  # ends of lines
    assert not re.search("[^\u00c0-\u017f\x00-\x7f]", body) and not re.search(r"(?<!\\)[%#]", body)
    plain = body.replace(r"\{", "").replace(r"\}", "")
    assert plain.count("{") == plain.count("}") and len(re.findall(r"(?<!\\)\$", body)) % 2 == 0
    for part in text.split(r"\toprule")[1:]:
        rows = part[: part.index(r"\bottomrule")].strip().split("\\\\\n")
        assert len({len(re.findall(r"(?<!\\)&", row)) for row in rows if "&" in row}) == 1


@pytest.mark.parametrize(
    "exhibit", ["gupta2023/table_01", *(f"ibrahim2024/table_{n:02d}" for n in range(1, 15))]
)
def test_every_cell_has_both_values_or_a_state(drawn, pocket, exhibit):
    files = drawn(exhibit)
    frame, kind = files["frame"], pocket().catalogue.find(*exhibit.split("/"))
    assert isinstance(kind, TableKind) and frame.columns.is_unique
    assert exhibit[:11] != "ibrahim2024" or len(frame) == ROWS.get(int(exhibit[-2:]), len(frame))
    assert check_states(frame) or kind.kind == "generations"
    tables = pipe_tables(files["md"].read_text(encoding="utf-8"))
    for table in tables:
        assert len({len(row) for row in table}) == 1
        assert all(cell.strip() for row in table[2:] for cell in row)
    heads = [re.sub(r"\\(.)", r"\1", head) for table in tables for head in table[0]]
    check_headings([*frame.columns, *heads])
    check_tex(files["tex"].read_text(encoding="utf-8"))
    # What the report shows is what stands in print.
    parts = [Part.model_validate(one) for one in read_json(files["json"])["tables"]]
    shown = [[[*part.heads], *part.marked(str, "**{}**")] for part in parts]
    undone = lambda cell: re.sub(r"\\(.)", r"\1", cell.strip())  # noqa: E731
    printed = [[[undone(cell) for cell in row] for row in [table[0], *table[2:]]] for table in tables]
    assert [[[" ".join(cell.split()) for cell in row] for row in table] for table in shown] == printed


def test_a_table_by_hand_from_receipts_to_csv(drawn, pocket):
    view = pocket().view("ibrahim2024/table_02")
    frame = drawn("ibrahim2024/table_02")["frame"]
    names = ["405m/pile+sp", "405m/pile--sp/replay-0", "405m/pile--sp/replay-0.05"]
    of = lambda name: [one.final["pile"].loss for one in view.runs(name)]  # noqa: E731
    union, without, five = (sum(of(name)) / 3 for name in names)
    row = frame.loc[3]
    assert row["D0, published"] == 2.23 and row["D0, mark"] == "printed"
    assert row["D0, reproduced (English, broad, pocket scale)"] == pytest.approx(five, rel=1e-9)
    t95 = 4.302653  # of two degrees of freedom
    scatter = (sum((value - five) ** 2 for value in of(names[2])) / 2 / 3) ** 0.5
    each = np.mean([one.sequence_losses("pile") for one in view.runs(names[2])], axis=0)
    error = math.hypot(t95 * scatter, 1.96 * each.std(ddof=1) / math.sqrt(len(each)))
    assert row["D0, half-width of the 95 % interval (pocket scale)"] == pytest.approx(error, rel=1e-6)
    assert row["D0, effect (pocket scale)"] == pytest.approx((five - union) / (without - union), rel=1e-9)
    assert 0 < row["D0, half-width of the effect's 95 % interval (pocket scale)"] < 1
    assert row["D0, published effect"] == pytest.approx((2.23 - 2.17) / (2.44 - 2.17), rel=1e-9)
    assert (row["D0, published rank"], row["D0, ranked rows"], row["D0, seeds (pocket scale)"]) == (4, 7, 3)
    # A range of ranks holds that of the value.
    losses = frame["D0, reproduced (English, broad, pocket scale)"]
    ranks = losses[:7].rank(method="min")
    best, worst = (frame[f"D0, {which} rank (pocket scale)"][:7] for which in ("best", "worst"))
    assert (best <= ranks).all() and (ranks <= worst).all() and (best < worst).any()
    assert not [head for head in frame if "difference" in head]
    pairs = view.exhibit.pairs(view)
    assert len(pairs) == 3 * 14 and len({pair.group for pair in pairs}) == 3 * 2
    assert ("D0, sp, 405m", 2.23, pytest.approx(five)) in pairs
    # A run in two rows counts once; domains and settings are inputs.
    view = pocket().view("ibrahim2024/table_12")
    assert len(view.exhibit.pairs(view)) == 3 * (36 - 3)
    view = pocket().view("ibrahim2024/table_13")
    assert view.exhibit.pairs(view) == []


def column(losses, published, here, error=0.001):
    """A column of compared values: the union and three shares of replay."""
    names = ["union", "r-0", "r-5", "r-50"]
    cells = [
        Cell(
            None if there is None else Value(value=there, mark="printed", place="here"),
            None if value is None else over_seeds({0: Sample(value, error)}, 3),
            "",
        )
        for there, value in zip(published, here, strict=True)
    ]
    anchors = (Anchors(new="sp", model="405m", zero="union", one="r-0", says="share of the gap"),)
    keys = [Key(name, "sp", "405m") for name in names]
    compare(Values("D0", "", "", "pocket", cells, 2), keys, anchors, losses)
    return cells


def test_ranks_and_effects_by_hand():
    cells = column(True, [2.17, 2.44, 2.23, 2.17], [3.50, 4.00, 3.60, 3.4999])
    # 1.96 * hypot(0.001, 0.001) = 0.0028: the first and the last are not apart.
    assert [cell.ranks for cell in cells] == [(1, 1, 2, 4), (4, 4, 4, 4), (3, 3, 3, 4), (1, 1, 2, 4)]
    union, without, five, fifty = (cell.effects for cell in cells)
    assert (union[0], union[1].value, union[1].noise) == (0, 0, 0)
    assert (without[0], without[1].value, without[1].noise) == (1, 1, 0)
    assert (five[0], five[1].value) == pytest.approx((0.06 / 0.27, 0.2))
    # Of (f - u) / (w - u) = s: the noises of f, (1 - s) u and s w, over w - u.
    assert five[1].noise == pytest.approx(1.96 * 0.001 * math.hypot(1, 0.8, 0.2) / 0.5)
    assert fifty[1].value == pytest.approx(-0.0002) and fifty[1].sign == 0
    assert [cell.compared(2) for cell in cells] == ["yes"] * 4
    assert all(cell.difference is None for cell in cells)
    # Scores: the highest is first, and there are no effects. What lacks a value is out of the ranking.
    cells = column(False, [30.0, 20.0, 40.0, None], [50.0, 60.0, None, 10.0])
    assert [cell.ranks for cell in cells] == [(1, 2, 2, 2), (2, 1, 1, 2), None, None]
    assert cells[0].compared(2) == "no: 2, not 1" and cells[2].compared(2) == ""
    assert all(cell.effects == (None, None) for cell in cells)
    # Anchors that are equal in print, or closer than the noise here, carry no effect.
    published, here = column(True, [2.5, 2.5, 2.6, 2.7], [3.5, 4.0, 3.6, 3.7])[2].effects
    assert published is None and here.value == pytest.approx(0.2)
    unsure = column(True, [2.5, 2.6, 2.6, 2.7], [3.5, 4, 3.6, 3.7], error=0.2)[2]
    assert unsure.effects == (pytest.approx(1), None)
    # Nothing is known of an order that all noise covers, and of a noise that nobody measured.
    cells = column(True, [2.5, 2.6, 2.7, 2.8], [3.5, 3.51, 3.52, 3.53], error=0.2)
    assert [cell.compared(2) for cell in cells] == ["open"] * 4
    cells = column(True, [2.5, 2.6, 2.7, 2.8], [3.5, 3.7, 3.6, 3.5])
    assert [cell.compared(2) for cell in cells] == ["yes", "no: 4, not 2", "yes", "no: 1–2, not 4"]
    assert over_seeds({0: Sample(3.5)}, 3).text == "3.500 [n = 1]"
    assert over_seeds({0: Sample(3.5, 0.0001)}, 3).text == "3.500 ± 0.0002 [1]"


def test_runs_that_share_seeds_and_sequences_are_told_apart_by_their_differences(drawn, pocket):
    view = pocket().view("ibrahim2024/table_02")
    less, more = (view.loss(f"405m/pile--sp/replay-{share}", "pile") for share in ("0.01", "0.05"))
    apart = difference(less.samples, more.samples)
    assert apart.sign == 1 and apart.noise < 0.5 * math.hypot(less.error, more.error)


def test_at_scale_paper_differences_are_shown(drawn):
    files = drawn("ibrahim2024/table_02", name="paper")
    frame = files["frame"]
    difference = frame["D0, reproduced (the Pile, paper scale)"] - frame["D0, published"]
    assert list(frame["D0, difference (paper scale)"]) == pytest.approx(list(difference), rel=1e-6)
    text = files["md"].read_text(encoding="utf-8")
    assert "D0 (published: the Pile) | D0 (reproduced: the Pile) | D0 (difference) |" in text
    settings = drawn("ibrahim2024/table_13", name="paper")["frame"]
    assert list(settings["405M, difference (paper scale)"][2:6]) == ["differs", "differs", "differs", "equal"]


def test_what_failed_is_told_from_what_was_not_run(drawn, pocket, tmp_path, repository):
    results = tmp_path / "results"
    failure = results / "pocket" / "runs" / FIVE / "seed-0" / "failure.json"
    failure.parent.mkdir(parents=True)
    failure.write_text("{}", encoding="utf-8")
    place = {"project": repository.with_(results=results)}  # nothing else is there
    files = drawn("ibrahim2024/table_02", **place)
    frame = files["frame"]
    assert list(frame["D0, state"][3:5]) == ["failed", "not run"]
    assert list(frame["D0, published"][3:5]) == [2.23, 2.21]
    assert "D0, ranked rows" not in frame
    assert files["md"].read_text(encoding="utf-8").count("| failed |") == 3


def test_what_was_not_run_is_out_of_the_ranking(drawn):
    files = drawn("ibrahim2024/table_02", (FIVE, UNION))
    assert [str(number) for number in files["frame"]["D0, ranked rows"][2:5]] == ["5", "", "5"]
    assert all("not run" in files[suffix].read_text(encoding="utf-8") for suffix in ("csv", "md", "tex"))
    about = read_json(files["json"])
    assert about["missing"] == [f"receipt {run}seed-{seed}" for run in (UNION, FIVE) for seed in (0, 1, 2)]
    assert f"Not run: 6 of {6 + len(about['sha256'])} records." in about["notes"]
    text = drawn("ibrahim2024/table_06", (TIES,))["md"].read_text(encoding="utf-8")
    (row,) = (
        line for line in text.splitlines() if "405M" in line and "300B SP | 50 |" in line and "2 × 24" in line
    )
    assert row.count("not run") == 3


def test_a_seed_that_is_missing_is_counted(drawn):
    frame = drawn("ibrahim2024/table_02", (f"{FIVE}seed-1",))["frame"]
    assert frame["D0, state"][3] == "reproduced at scale pocket with 2 of 3 seeds"


def test_misprints_are_shown_and_not_compared(drawn, pocket):
    files = drawn("ibrahim2024/table_03")
    row = files["frame"].loc[5]
    assert (row["D1, published"], row["D1, mark"]) == (2.70, "printed; misprint")
    assert row["D1, published rank"] == "" and row["D0, ranked rows"] == 5 and row["D0, mark"] == "printed"
    text = files["md"].read_text(encoding="utf-8")
    assert "| 2.70ᵐ |" in text and "ᵐ: a misprint, not compared." in text
    view = pocket().view("ibrahim2024/table_03")
    groups = [pair.group for pair in view.exhibit.pairs(view)]
    assert [groups.count(f"{name}, german, 405m") for name in ("D0", "D1")] == [5, 4]


def test_domains_settings_and_generations(drawn, pocket):
    frame = drawn("ibrahim2024/table_01")["frame"]
    built = pocket().records.fingerprint("sp")
    total = sum(domain.tokens for domain in built.splits["train"].values())
    (heading,) = (head for head in frame if head.startswith("Train tokens, reproduced"))
    assert float(frame[heading].iloc[-1]) == total and list(frame["Domain"])[-1] == "Total"
    assert set(frame["Train tokens, state"][:7]) <= {"no counterpart", "built at scale pocket"}
    frame = drawn("ibrahim2024/table_13")["frame"].set_index("Description")["405M, reproduced (pocket scale)"]
    receipt = pocket().view("ibrahim2024/table_13").runs("405m/pile")[0]
    assert frame["Parameters"] == f"{receipt.parameters:,}"
    embeddings = 2 * 1024 * 24
    assert frame["Non-embedding parameters"] == f"{receipt.parameters - embeddings:,}"
    frame = drawn("ibrahim2024/table_14")["frame"]
    factor = pocket().catalogue.plan.scale.models["405m"].eta_factor
    rates = (frame["Value, reproduced (pocket scale)"][3], frame["Value, published"][3])
    assert rates == pytest.approx((factor * 3e-4, 3e-4)) and factor > 1
    frame = drawn("ibrahim2024/table_09", ("ibrahim2024/405m/german/",))["frame"]
    evaluation = pocket().records.evaluation("ibrahim2024/405m/pile/seed-0")
    texts = frame[frame["Training tokens"] == "300B Pile"]["Generation (pocket scale)"]
    assert [text.lstrip("'") for text in texts] == [*evaluation.generations]
    assert set(frame[frame["Training tokens"] == "200B Ger."]["Generation (pocket scale)"]) == {"not run"}
    published = pocket().catalogue.plan.studies["ibrahim2024"].published.tables
    assert [(text,) for text in frame["Published (printed)"]] == list(published["table_09"].rows)
    asked = drawn("ibrahim2024/table_08")["frame"]
    assert [*zip(asked["Published (printed)"], asked["Translation"], asked["Why"], strict=True)] == list(
        published["table_08"].rows
    )
    assert not set(asked["Published (printed)"]) & set(asked["Text (pocket scale)"])


def test_models_of_the_papers_own_size_continue_the_published_prompts(repository):
    generating = {
        name: Catalogue(Plan(repository, load_scale(repository, name), ("ibrahim2024",))).generating
        for name in ("paper", "pocket")
    }
    (asked,) = {generating["paper"][model] for model in generating["paper"]}
    assert len(asked) == 5 and asked[1].startswith("Döner")
    assert set(generating["pocket"].values()) == {"german"}


def test_what_is_not_built_has_its_planned_shares(drawn, repository, tmp_path):
    frame = drawn("gupta2023/table_01", project=repository.with_(results=tmp_path / "none"))["frame"]
    states = {state.partition(";")[0] for state in frame["Sampling %, state"]}
    assert states == {"planned at scale pocket", "no counterpart"}
    assert "not built" in set(frame["Train tokens, state"])


def test_counts_and_decimals():
    assert [count(n) for n in (12, 1500, 8.0e6, 299.3e9)] == ["12", "1.5k", "8.0M", "299.3B"]
    values = [Value(value=v, mark="printed", place="") for v in (2.5, 2.44, 3, "x")]
    assert decimals([*values, None]) == 2 and decimals([None]) == 0


# -- files

HOSTILE = ['=HYPERLINK("http://x")', "@SUM(1)", "+1+1", "-2+3", "-2.5"]
HOSTILE += ["a\x1b[31mred", "[a](javascript:x)", "<b>"]


def test_text_is_harmless_in_every_file(tmp_path):
    table = Table([Texts("#", [*map(str, range(8))]), Texts("text", HOSTILE)], [])
    parts = table.parts("pocket")
    write_csv(table, tmp_path / "t.csv")
    write_markdown(parts, tmp_path / "t.md", "T", "c", HOSTILE[-3])
    write_tex(table.parts("pocket", PAGE), tmp_path / "t.tex", "T", "c", HOSTILE[-3], "tab:t")
    cells = list(pd.read_csv(tmp_path / "t.csv", dtype=str)["text"])
    assert cells[:5] == [f"'{HOSTILE[0]}", f"'{HOSTILE[1]}", f"'{HOSTILE[2]}", f"'{HOSTILE[3]}", "-2.5"]
    texts = [(tmp_path / f"t.{suffix}").read_bytes() for suffix in ("csv", "md", "tex")]
    assert not any(b"\x1b" in text for text in texts)
    markdown = texts[1].decode()
    assert r"[a\](javascript:x)" in markdown and r"\<b\>" in markdown
    check_tex(texts[2].decode())


def test_symbols_are_escaped_for_tex(drawn):
    text = drawn("ibrahim2024/table_03")["tex"].read_text(encoding="utf-8")
    assert r"600B Pile $\cup$ SP" in text and r"300B Pile $\rightarrow$ 300B SP (5\% Replay)" in text
    assert r"2.70$^{\mathrm{m}}$" in text
    assert escape_tex("a_b\\ 漢 \u00a0ü") == r"a\_b\textbackslash{} ? ~ü"


def test_a_wide_table_is_printed_in_parts_and_what_the_paper_has_alone_apart(drawn):
    parts = [Part.model_validate(one) for one in read_json(drawn("ibrahim2024/table_10")["json"])["tables"]]
    assert len(parts) > 1 and parts[0].title == ""
    assert parts[-1].title == "Published columns that have no counterpart at scale pocket:"
    assert (
        parts[-1].heads[:2] == ("Model size", "Training tokens")
        and "HellaSwag (published)" in parts[-1].heads
    )


def test_the_best_is_bold_where_noise_leaves_it_first(tmp_path):
    """Of each group: the published one, and ours if no other place is open to it."""
    cells = column(True, [2.17, 2.44, 2.23, 2.18], [3.50, 4.00, 3.60, 3.4999])
    clear = column(False, [30.0, 20.0, 40.0, 10.0], [50.0, 60.0, 70.0, 10.0])
    columns = [Values(name, "", "", "pocket", of, 2) for name, of in (("loss", cells), ("score", clear))]
    table = Table([Texts("run", ["union", "none", "5 %", "50 %"]), *columns], [])
    (part,) = table.parts("pocket")
    assert [part.rows[row][k] for row, k in sorted(part.best)] == ["2.17", "40.00", clear[2].reproduced.text]
    assert Part.model_validate(json.loads(part.model_dump_json())) == part
    write_markdown([part], tmp_path / "t.md", "T", "c", "")
    assert [*re.findall(r"\*\*(.*?)\*\*", (tmp_path / "t.md").read_text())][1:] == [
        "2.17",
        "40.00",
        part.rows[2][-2],
    ]
    write_tex([part], tmp_path / "t.tex", "T", "c", "", "tab:t")
    assert r"\textbf{2.17}" in (tmp_path / "t.tex").read_text()
    assert any(note.startswith("Bold") for note in table.all_notes("a paper"))
    assert not any(note.startswith("Bold") for note in Table(columns[:0], []).all_notes("a paper"))


def test_the_columns_of_a_narrow_page_stand_below_each_other(drawn, pocket):
    """At 8 points; the first says what the rows are, by whose numbers the others begin."""
    view = pocket().view("ibrahim2024/table_05")
    table = view.exhibit.table(view)
    whole, narrow = table.parts("pocket"), table.parts("pocket", PAGE)
    assert len(narrow) > len(whole) and narrow[0].heads[:3] == ("", "Model size", "Training tokens")
    numbers = [str(row + 1) for row in range(len(whole[0].rows))]
    assert all([row[0] for row in part.rows] == numbers for part in narrow)
    of_whole = [
        head for part in whole for head in part.heads if head not in ("Model size", "Training tokens")
    ]
    assert [head for part in narrow for head in part.heads[1:]][2:] == of_whole
    text = drawn("ibrahim2024/table_05")["tex"].read_text(encoding="utf-8")
    assert r"\footnotesize" in text and not re.search("sideways|resizebox|tiny|scriptsize", text)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("pdflatex"), reason="pdflatex is not installed")
def test_the_tables_compile(drawn, pocket, tmp_path):
    tables = ["/".join(key) for key, one in pocket().catalogue.exhibits.items() if one.makes == "table"]
    paths = [drawn(exhibit)["tex"] for exhibit in tables]
    packages = r"\usepackage[T1]{fontenc}\usepackage[margin=2cm]{geometry}"
    packages += r"\usepackage{booktabs,array}"
    pages = "".join(rf"\input{{{path.relative_to(tmp_path)}}}\clearpage" for path in paths)
    text = rf"\documentclass[10pt,a4paper]{{article}}{packages}\begin{{document}}{pages}\end{{document}}"
    (tmp_path / "all.tex").write_text(text, encoding="utf-8")
    command = ["pdflatex", "-draftmode", "-halt-on-error", "-interaction=nonstopmode", "all.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, errors="replace")
    assert done.returncode == 0, done.stdout[-2000:]
    log = (tmp_path / "all.log").read_text(errors="replace")
    assert not re.findall(r"Float too large.*|Missing character.*", log)
    assert all(float(points) < 5 for points in re.findall(r"Overfull \\[hv]box \(([\d.]+)pt", log))
