"""The long table of all results: every value of a table and every bar, with its interval and its runs."""

import pandas as pd
import pytest

from cpt_repro.exhibits.base import View
from cpt_repro.report.values import HEADS, write_values


@pytest.fixture(scope="module")
def values(made):
    path = write_values(made.catalogue, made.records, made.root / "values")
    return pd.read_csv(path).set_index(["paper", "exhibit"]).sort_index()


def test_every_result_is_a_line_with_its_interval_and_runs(made, values):
    assert [*values.index.names, *values.columns] == [*HEADS]
    table = values.loc["ibrahim2024", "table_02"]
    line = table[(table["row"] == "300B Pile → 300B SP (5% Replay)") & (table["column"] == "D0")].iloc[0]
    view = View(made.catalogue, made.records, "ibrahim2024", "table_02")
    ours = view.loss("405m/pile--sp/replay-0.05", "pile")
    assert (line["published"], line["mark"]) == (2.23, "printed") and "Table 2" in line["place"]
    assert [line[end] for end in ("ours", "lower", "upper")] == pytest.approx(
        [ours.value, ours.value - ours.error, ours.value + ours.error], rel=1e-6
    )
    runs = [f"ibrahim2024/405m/pile--sp/replay-0.05/seed-{seed}" for seed in range(3)]
    assert line["runs"].split() == runs and line["seeds"] == len(runs)
    assert len(table) == 14 * 3 and len(values.loc["ibrahim2024", "figure_01"]) == 3 * 9
    assert all(
        one in made.catalogue.plan.runs or "ties" in one for of in values["runs"] for one in of.split()
    )


def test_what_is_missing_stays_empty(values):
    mmlu = values[values["column"] == "MMLU"]
    assert len(mmlu) > 20 and mmlu["published"].notna().all() and mmlu["ours"].isna().all()
