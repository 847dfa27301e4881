"""The long table of all numbers: values of tables, bars, ends of curves, each with its records."""

import math

import pandas as pd
import pytest

from cpt_repro.exhibits.base import View
from cpt_repro.report.values import HEADS, write_values


@pytest.fixture(scope="module")
def values(made):
    return pd.read_csv(write_values(made.catalogue, made.records, made.root / "values"))


def of(values, exhibit, paper="ibrahim2024"):
    return values[(values["paper"] == paper) & (values["exhibit"] == exhibit)]


def test_every_result_is_a_line_with_its_interval_and_records(made, values):
    assert [*values.columns] == [*HEADS]
    table = of(values, "table_02")
    line = table[(table["row"] == "300B Pile → 300B SP (5% Replay)") & (table["column"] == "D0")].iloc[0]
    view = View(made.catalogue, made.records, "ibrahim2024", "table_02")
    ours = view.loss("405m/pile--sp/replay-0.05", "pile")
    assert (float(line["published"]), line["mark"]) == (2.23, "printed") and "Table 2" in line["place"]
    assert [line[end] for end in ("ours", "lower", "upper")] == pytest.approx(
        [ours.value, ours.value - ours.error, ours.value + ours.error], rel=1e-6
    )
    name = "ibrahim2024/405m/pile--sp/replay-0.05"
    assert line["run"] == name and line["seeds"] == 3
    assert line["records"].split() == [f"runs/{name}/seed-{seed}/receipt.json" for seed in range(3)]
    assert len(table) == 14 * 3 and len(of(values, "figure_01")) == 3 * 9
    every = {path for paths in values["records"].dropna() for path in paths.split()}
    assert all((made.records.folder / path).is_file() for path in every)


def test_a_line_is_told_from_all_others_by_its_first_columns(made, values):
    assert not values.duplicated([*HEADS[:4]]).any()
    # What has no numbers: the drawing of a schedule, prompts and what is written after them.
    without = {
        (paper, key)
        for paper, key in made.catalogue.exhibits
        if made.catalogue.find(paper, key).kind in ("schedule", "generations")
    }
    assert {*zip(values["paper"], values["exhibit"], strict=True)} == {*made.catalogue.exhibits} - without


def test_ends_of_curves_are_points_that_were_measured(made, values):
    """Figure 3 ends at 50B, where a run of 300B is still being trained; Figure 6 where it ends."""
    view = View(made.catalogue, made.records, "ibrahim2024", "figure_03")
    early = of(values, "figure_03")
    line = early[early["run"] == "ibrahim2024/405m/pile--sp/replay-0"].iloc[0]
    assert line["row"].startswith("warm-up 1 %, at ") and line["mark"] == "digitised"
    x = float(line["row"].removesuffix("B").split(" at ")[1])
    read = [dict(one.curve("pile")) for one in view.runs("405m/pile--sp/replay-0")]
    (at,) = [point for point in read[0] if math.isclose(point, x, abs_tol=0.01)]
    assert 45 < at <= 50 and line["ours"] == pytest.approx(sum(one[at] for one in read) / len(read))
    late = of(values, "figure_06")
    line = late[late["run"] == "ibrahim2024/405m/pile"].iloc[0]
    assert line["ours"] == pytest.approx(view.loss("405m/pile", "pile").value)


def test_a_merge_has_evaluations_and_no_receipts(values):
    merged = values[values["run"].str.contains("/ties/", na=False)]
    assert len(merged) > 10 and all("/evaluation.json" in one for one in merged["records"].dropna())


def test_what_is_missing_stays_empty(values):
    mmlu = values[values["column"] == "MMLU"]
    assert len(mmlu) > 20 and mmlu["published"].notna().all() and mmlu["ours"].isna().all()
    for head in ("ours", "lower", "upper", "published", "seeds"):
        assert pd.to_numeric(values[head]).notna().any(), head
