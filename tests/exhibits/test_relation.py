"""Effects against what may decide them: every point from receipts by hand, published ones as declared."""

import numpy as np
import pytest

from cpt_repro.exhibits.base import View
from cpt_repro.exhibits.relation import Planned, Removed, Rise

OLD, WEAK, KEPT = ("405m/pile", "405m/pile--sp/replay-0", "405m/pile--sp/replay-0.05")


MIXED = ("regime/405m/mix-25", "regime/405m/mix-50", "regime/405m/mix-75")


@pytest.fixture
def view(pocket):
    """Pocket's records without those of the mixtures."""
    made = pocket(gone=MIXED, papers=("ibrahim2024", "regime"))
    return View(made.catalogue, made.records, "regime", "figure_01")


def final(view, run):
    return np.mean([one.final["pile"].loss for one in view.runs(f"ibrahim2024/{run}")])


def test_points_by_hand(view):
    old, weak, kept = (final(view, run) for run in (OLD, WEAK, KEPT))
    names = {run: f"ibrahim2024/{run}" for run in (OLD, WEAK, KEPT)}
    rise = Rise(rise_of=names[WEAK], over=names[OLD], corpus="pile").measure(view)
    assert rise.value == pytest.approx(100 * (weak / old - 1)) and 0 < rise.error < rise.value
    removed = Removed(removed_by=names[KEPT], of=names[WEAK], over=names[OLD], corpus="pile").measure(view)
    assert removed.value == pytest.approx(100 * (weak - kept) / (weak - old)) and removed.error > 0
    # No share is taken of a rise that is none.
    assert (
        Removed(removed_by=names[KEPT], of=names[OLD], over=names[OLD], corpus="pile").measure(view) is None
    )
    assert Rise(rise_of="405m/mix-25", over=names[OLD], corpus="pile").measure(view) is None  # not run

    # On the text of the two largest domains alone: those sequences of the last evaluation.
    rows = [
        row
        for row, (domain, _) in enumerate(view.fingerprint("pile").validation_draw(1000))
        if domain in ("formal_maths", "blogs")
    ]
    assert len(rows) == 330

    def mean(run):
        losses = [one.sequence_losses("pile") for one in view.runs(names[run])]
        return np.mean(np.array(losses)[:, rows])

    of_two = {"over": names[OLD], "corpus": "pile", "domains": 2}
    rise = Rise(rise_of=names[WEAK], **of_two).measure(view)
    assert rise.value == pytest.approx(100 * (mean(WEAK) / mean(OLD) - 1)) and 0 < rise.error < rise.value
    removed = Removed(removed_by=names[KEPT], of=names[WEAK], **of_two).measure(view)
    assert removed.value == pytest.approx(100 * (mean(WEAK) - mean(KEPT)) / (mean(WEAK) - mean(OLD)))
    everything = Rise(rise_of=names[WEAK], over=names[OLD], corpus="pile", domains=11).measure(view)
    whole = Rise(rise_of=names[WEAK], over=names[OLD], corpus="pile").measure(view)
    assert everything.error == pytest.approx(whole.error, rel=0.2) and everything.value != rise.value

    def planned(what):
        return Planned(run=names[WEAK], what=what).measure(view)

    parameters = view.runs(names[OLD])[0].parameters
    assert planned("parameters").value == parameters
    tokens = sum(view.planned(names[run]).training.tokens for run in (OLD, WEAK))
    assert planned("tokens per parameter").value == pytest.approx(tokens / parameters)
    factor = view.scale.models["405m"].eta_factor
    assert planned("highest rate").value == pytest.approx(3e-4 * factor)
    assert planned("domains").value == len(view.fingerprint("sp").shares) == 7
    assert Planned(run=names[OLD], what="domains").measure(view).value == 11


def test_what_was_not_run_is_told_and_published_points_are_there(view):
    figure = view.exhibit.draw(view)
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert (
        "(a) smaller model, old text mixed in: 3 of 3 not run" in texts
        and "smaller model, published" in texts
    )
    lines = [line for axes in figure.axes for line in axes.get_lines()]
    drawn = {(float(x), float(y)) for line in lines for x, y in zip(*line.get_data(), strict=True)}
    panels = view.exhibit.panels
    declared = [(p.x, p.y) for panel in panels for series in panel.series for p in series.published]
    assert len(declared) == 10 and set(declared) <= drawn
    assert view.exhibit.notes(view)[-1] == "Hollow: published (derived)."


def test_published_points_are_shares_of_the_printed_tables(view):
    tables = view.plan.studies["ibrahim2024"].published.tables
    losses = [row[tables["table_04"].columns.index("D0 Pile")] for row in tables["table_04"].rows]
    large, small = losses[:5], losses[5:]
    rises = [100 * (of[2] / of[0] - 1) for of in (small, large)]
    shifts = [100 * (of[1] / of[0] - 1) for of in (small, large)]
    removed = [100 * (of[2] - of[3]) / (of[2] - of[0]) for of in (small, large)]
    points = {(p.x, p.y) for panel in view.exhibit.panels for s in panel.series for p in s.published}
    for x, y in zip(shifts, rises, strict=True):
        assert any(abs(a - x) < 0.06 and abs(b - y) < 0.06 for a, b in points), (x, y)
    for y in removed:
        assert any(abs(b - y) < 0.06 for _, b in points), y
