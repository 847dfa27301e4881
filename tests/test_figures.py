"""Figures: published curves and bars beside ours, means over comparable seeds, legibility; the agreement of both."""

import random

import numpy as np
import pytest
from exhibit_receipts import make_results
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

from cpt_repro.declarations.scale import MoreSeeds, load_scale
from cpt_repro.exhibits import figures, style
from cpt_repro.exhibits.agreement import agreement
from cpt_repro.declarations.exhibits import load_exhibits
from cpt_repro.exhibits.draw import caption, draw
from cpt_repro.records.lookup import Records
from cpt_repro.files import read_json
from cpt_repro.planning.plan import Plan
from cpt_repro.declarations.published import load_digitised

FIGURES = [(p, k) for p in ("gupta2023", "ibrahim2024") for k in load_exhibits(p) if k.startswith("figure")]
IBRAHIM = load_exhibits("ibrahim2024")


def _records(folder, leave_out=(), paper="ibrahim2024", **changes):
    """Made-up receipts at smoke, changed so; at scale paper by that name alone."""
    plan = Plan(load_scale("smoke").model_copy(update=changes))
    make_results(plan, folder, leave_out)
    return Records(plan, paper, folder)


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    return _records(tmp_path_factory.mktemp("smoke"))


@pytest.fixture(scope="module")
def paper(tmp_path_factory):
    return _records(tmp_path_factory.mktemp("paper"), name="paper")


def _figure(exhibit, records):
    with style.drawing():
        return figures.DRAWERS[exhibit.kind](exhibit, records)


def _published(axes):
    return [line for line in axes.get_lines() if str(line.get_gid()).startswith("published-")]


def _legend(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


# -- agreement


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=2, max_size=12))
def test_agreement_of_one_group_is_that_of_scipy_and_of_counting(values):
    found = agreement([("a", float(x), float(y)) for x, y in values], resamples=20)
    if len({x for x, _ in values}) > 1 and len({y for _, y in values}) > 1:
        assert found["spearman"] == pytest.approx(spearmanr(*zip(*values, strict=True)).statistic, abs=6e-5)
    else:
        assert found["spearman"] is None
    told = [
        0.5 if y == w else float((x < v) == (y < w))
        for k, (x, y) in enumerate(values)
        for v, w in values[k + 1 :]
        if x != v
    ]
    assert found["signs"] == (pytest.approx(sum(told) / len(told), abs=6e-5) if told else None)
    assert (found["pairs"], found["groups"]) == (len(values), 1)


def test_agreement_compares_within_groups_only():
    # Two groups at different levels, each in the wrong order: pooled as they are, they would seem to agree.
    pairs = [("low", 1.0, 12.0), ("low", 2.0, 11.0), ("high", 101.0, 1020.0), ("high", 102.0, 1010.0)]
    found = agreement([*pairs, ("alone", 5.0, 5.0)])
    assert (found["spearman"], found["signs"], found["pairs"], found["groups"]) == (-1, 0, 4, 2)
    assert found["spearman_low"] is None and found["signs_high"] is None  # two values a group do not vary
    assert found == agreement([*pairs, ("alone", 5.0, 5.0)])
    assert agreement([("a", 1.0, 1.0), ("b", 1.0, 1.0)]) is None and agreement([]) is None


def test_agreement_gives_an_interval_that_holds_its_value_and_narrows():
    draw_ = random.Random(3)
    xs = [draw_.random() for _ in range(60)]
    pairs = [("a", x, x + 0.3 * draw_.random()) for x in xs]
    few, many = agreement(pairs[:8]), agreement(pairs)
    for name in ("spearman", "signs"):
        assert many[f"{name}_low"] < many[name] < many[f"{name}_high"] <= 1
        assert many[f"{name}_high"] - many[f"{name}_low"] < few[f"{name}_high"] - few[f"{name}_low"]


# -- published curves


def test_below_paper_scale_published_curves_stand_beside_ours(smoke):
    exhibit = IBRAHIM["figure_04"]
    made = _figure(exhibit, smoke)
    ours, theirs = made.axes[::2], made.axes[1::2]
    assert len(ours) == len(theirs) == 4
    for panel, left, right in zip(exhibit.panels, ours, theirs, strict=True):
        assert (
            _published(left) == [] and len(_published(right)) == len(panel.curves) + 1
        )  # and the line of the union
        assert left.get_xlim() == right.get_xlim() == panel.xlim
        assert left.get_ylim() != right.get_ylim()
        assert "published (digitised)" in right.get_title("left")
        colours = [line.get_color() for line in _published(right)]
        assert len(set(colours)) == len(colours) and set(colours) <= {
            line.get_color() for line in left.get_lines()
        }
    end = load_digitised("ibrahim2024").panels["4a"].curves["405M SP (PT on Pile) MaxLR 3e-04"].points[-1]
    assert (_published(theirs[0])[3].get_xdata()[-1], _published(theirs[0])[3].get_ydata()[-1]) == end
    # A curve that comes in from above the axes does not squash the rest.
    heights = np.array([line.get_ydata()[-1] for line in _published(theirs[0])[:5]])
    assert np.ptp(heights) > 0.15 * np.ptp(theirs[0].get_ylim())


def test_at_paper_scale_published_curves_stand_among_ours(paper):
    exhibit = IBRAHIM["figure_04"]
    made = _figure(exhibit, paper)
    assert [len(_published(axes)) for axes in made.axes] == [6, 6, 6, 6]
    for axes in made.axes:
        own = [
            line for line in axes.get_lines() if line not in _published(axes) and len(line.get_xdata()) > 2
        ]
        assert max(line.get_zorder() for line in _published(axes)) < min(line.get_zorder() for line in own)
        assert max(line.get_linewidth() for line in _published(axes)) < min(
            line.get_linewidth() for line in own
        )
    assert _legend(made).count("published (digitised)") == 1


def test_without_published_curves_nothing_is_drawn_beside(smoke, tmp_path):
    records = _records(tmp_path, paper="gupta2023")
    exhibit = load_exhibits("gupta2023")["figure_01"]
    made = _figure(exhibit, records)
    assert len(made.axes) == 2 and not any(_published(axes) for axes in made.axes)
    assert figures.pairs(exhibit, records) == []
    assert "could not be digitised" in caption(exhibit, records)
    assert "digitised from the paper's plots" in caption(IBRAHIM["figure_04"], smoke)


@pytest.mark.parametrize("scale", ["smoke", "paper"])
def test_a_curve_without_counterpart_and_runs_that_are_missing_break_nothing(scale, tmp_path):
    gone = ("405m/pile--sp/replay-0.05", "405m/pile+sp")
    records = _records(tmp_path, leave_out=gone, name=scale)
    exhibit = IBRAHIM["figure_05"]
    panel = exhibit.panels[0]
    curves = (panel.curves[0].model_copy(update={"published": ()}), *panel.curves[1:])
    exhibit = exhibit.model_copy(
        update={"panels": (panel.model_copy(update={"curves": curves}), *exhibit.panels[1:])}
    )
    made = _figure(exhibit, records)
    step = 2 if scale == "smoke" else 1
    assert [len(_published(axes)) for axes in made.axes[step - 1 :: step]] == [6, 7, 7, 7]
    assert "5 % replay: not run" in _legend(made) and "(a) (b) final loss of the union: not run" in _legend(
        made
    )
    pairs = figures.pairs(exhibit, records)
    assert [sum(group == name for group, *_ in pairs) for name in ("5a", "5b", "5c", "5d")] == [4, 5, 7, 7]


@pytest.mark.parametrize("scale", ["smoke", "paper"])
def test_with_no_receipts_at_all_the_published_curves_are_still_there(scale, tmp_path):
    plan = Plan(load_scale("smoke").model_copy(update={"name": scale}))
    records = Records(plan, "ibrahim2024", tmp_path)
    made = _figure(IBRAHIM["figure_05"], records)
    assert sum(len(_published(axes)) for axes in made.axes) == 28
    assert "5 % replay: not run" in _legend(made)
    assert figures.pairs(IBRAHIM["figure_05"], records) == []


def test_pieces_of_a_published_curve_are_not_joined(smoke):
    made = _figure(IBRAHIM["figure_10"], smoke)
    annealed = _published(made.axes[1])[3]
    xs, ys = annealed.get_xdata(), annealed.get_ydata()
    assert np.isnan(ys).sum() == 2 and [x for x, y in zip(xs, ys, strict=True) if np.isnan(y)] == [
        179.14,
        279.14,
    ]
    rates = [max(line.get_ydata()) for line in _published(made.axes[3])]
    assert max(rates) == pytest.approx(3e-4, rel=0.02)


# -- pairs


def test_a_pair_is_the_last_common_point(smoke):
    pairs = figures.pairs(IBRAHIM["figure_05"], smoke)
    assert len(pairs) == 28 and {group for group, *_ in pairs} == {"5a", "5b", "5c", "5d"}
    receipt = smoke.receipts("405m/pile--sp/replay-0")[0]
    xs, losses = zip(*receipt.curve("pile"), strict=True)
    published = load_digitised("ibrahim2024").panels["5a"].curves["405M SP (PT on Pile)"].points
    assert xs[-1] < published[-1][0] == 299.28  # iterations are whole
    assert pairs[0] == ("5a", pytest.approx(np.interp(xs[-1], *zip(*published, strict=True))), losses[-1])
    union = smoke.receipts("405m/pile+sp")[0]
    assert pairs[6] == ("5a", 2.168, pytest.approx(union.final["pile"].loss))


def test_a_chain_with_a_piece_missing_has_no_end(tmp_path):
    records = _records(tmp_path, leave_out=("405m/sp-3x100/cosine/split-3",))
    assert len(_figure(IBRAHIM["figure_10"], records).axes) == 4
    pairs = figures.pairs(IBRAHIM["figure_10"], records)
    assert {group for group, *_ in pairs} == {"10a"}  # no learning rates
    ends = [published for _, published, _ in pairs]
    assert 2.546 not in ends and {2.6088, 2.5486, 2.5519} <= set(ends)


def test_bars_are_compared_group_by_group(smoke, tmp_path):
    pairs = figures.pairs(IBRAHIM["figure_01"], smoke)
    assert len(pairs) == 18 and len({group for group, *_ in pairs}) == 6
    assert [published for _, published, _ in pairs[:3]] == [1.99, 1.89, 1.87]
    *_, sidecar = draw(smoke.plan, "ibrahim2024", "figure_01", smoke.results, tmp_path)
    assert read_json(sidecar)["agreement"] == agreement(pairs)


def test_published_bars_stand_below_ours_and_at_paper_scale_on_them(smoke, paper):
    made = _figure(IBRAHIM["figure_01"], smoke)
    assert [len(axes.patches) for axes in made.axes] == [9] * 6
    assert [bar.get_height() for bar in made.axes[5].patches[:3]] == [47.5, 47.7, 48.0]
    assert [axes.get_title("left") for axes in made.axes[3:]] == [
        "published (digitised)", "published (printed)", "published (printed)",
    ]  # fmt: skip
    made = _figure(IBRAHIM["figure_01"], paper)
    assert [len(_published(axes)) for axes in made.axes] == [9, 9, 9]
    assert "published" in _legend(made)


# -- seeds


def test_means_are_over_the_seeds_that_all_have():
    seeded = [{0: "a", 1: "b", 2: "c"}, {}, {0: "d"}]
    assert figures.shared(seeded) == [["a"], [], ["d"]]
    assert figures.shared([{0: "a"}, {1: "b"}]) == [["a"], ["b"]]
    assert figures.shared([{}, {}]) == [[], []]


def test_runs_with_different_seeds_are_drawn_on_the_common_ones(tmp_path):
    more = MoreSeeds(seeds=(1, 2), runs=("ibrahim2024/405m/pile--sp/replay-0",))
    records = _records(tmp_path, more_seeds=more)
    exhibit = IBRAHIM["figure_13"]
    made = _figure(exhibit, records)
    line = made.axes[0].get_lines()[0]
    receipts = records.receipts("405m/pile--sp/replay-0")
    assert len(receipts) == 3
    assert list(line.get_ydata()) == pytest.approx([loss for _, loss in receipts[0].curves["pile"]])
    assert len(made.axes[0].collections) == 1 and len(_legend(made)) == 2
    told = caption(exhibit, records)
    assert "1 to 3 seeds a run" in told and "the seeds that all runs of a panel have" in told
    # Its published ends lie within what can be read off, so they are drawn and not counted.
    assert figures.pairs(exhibit, records) == []
    assert figures._curve_pairs(exhibit, records)[0][2] == pytest.approx(
        np.interp(39.79, *zip(*receipts[0].curve("pile"), strict=True))
    )


def test_bars_and_planes_of_several_seeds(tmp_path):
    records = _records(tmp_path, seeds=(0, 1, 2))
    panel, group = IBRAHIM["figure_01"].panels[1], IBRAHIM["figure_01"].groups[1]
    losses = [(r.final["pile"].loss + r.final["sp"].loss) / 2 for r in records.receipts(group.runs[0])]
    from cpt_repro.exhibits.bars import _bar

    height, error = _bar(records, panel, group, group.runs[0])
    assert height == pytest.approx(np.mean(losses)) and error == pytest.approx(
        np.std(losses, ddof=1) / 3**0.5
    )
    gupta = Records(records.plan, "gupta2023", tmp_path)
    exhibit = load_exhibits("gupta2023")["figure_04"]
    made = _figure(exhibit, gupta)
    paths = [line for line in made.axes[0].get_lines() if len(line.get_xdata()) > 1]
    assert len(paths) == len(exhibit.curves)  # one path a run, whatever the number of seeds
    first = [r.curves["sp"][0][1] for r in gupta.receipts(exhibit.curves[0].runs[0])]
    assert paths[0].get_xdata()[0] == pytest.approx(np.exp(np.mean(first)))


# -- all of them


@pytest.mark.parametrize(("paper_name", "key"), FIGURES)
def test_text_is_large_enough_and_the_figure_fits_a_page(smoke, paper_name, key):
    from matplotlib.text import Text

    made = _figure(load_exhibits(paper_name)[key], Records(smoke.plan, paper_name, smoke.results))
    texts = [text for text in made.findobj(Text) if text.get_text().strip() and text.get_visible()]
    assert texts and min(text.get_fontsize() for text in texts) >= 6.5
    width, height = made.get_size_inches()
    assert width <= 6.9 and height <= 9
