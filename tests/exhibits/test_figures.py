"""Figures: published values beside ours, means over comparable seeds, limits, boundaries, legends."""

import math

import numpy as np
import pytest
from matplotlib.patches import Rectangle

from cpt_repro.declarations.scale import MoreSeeds
from cpt_repro.exhibits.agreement import agreement
from cpt_repro.exhibits.base import FigureKind
from cpt_repro.exhibits.curves import Curve, Panel, _Axes
from cpt_repro.exhibits.draw import notes
from cpt_repro.exhibits.plane import Plane, r_squared
from cpt_repro.exhibits.style import drawing, shared

from .conftest import legend, published

SEED = "ibrahim2024/405m/pile--sp/replay-0/seed-0"


def changed(exhibit, panel=0, **changes):
    """An exhibit with one of its panels changed."""
    panels = list(exhibit.panels)
    panels[panel] = panels[panel].model_copy(update=changes)
    return exhibit.model_copy(update={"panels": tuple(panels)})


def level(axes):
    """Where a horizontal line lies."""
    return next(y[0] for y in (line.get_ydata() for line in axes.lines) if len(y) == 2 and y[0] == y[1])


# -- the line of reference


def test_the_line_of_reference_is_of_the_sequences_that_curves_are_of(pocket, figure_of):
    """Pocket's curves are of 250 sequences and final losses of 1,000, whose means differ."""
    view = pocket().view("ibrahim2024/figure_05")
    trained = view.runs("405m/pile+sp")
    by_hand = []
    for one in trained:
        losses = one.receipt.losses["pile"]
        points = dict(losses.curve)
        by_hand.append(np.mean([points[i] for i in one.run.validation.closing]))
        assert losses.along == 250 and abs(by_hand[-1] - losses.final.loss) > 0.02
    assert level(figure_of(view).axes[0]) == pytest.approx(np.mean(by_hand))


# -- published curves


def test_below_paper_scale_published_curves_stand_beside_ours(pocket, figure_of):
    view = pocket().view("ibrahim2024/figure_04")
    made = figure_of(view)
    ours, theirs = made.axes[::2], made.axes[1::2]
    assert len(ours) == len(theirs) == 4
    for panel, left, right in zip(view.exhibit.panels, ours, theirs, strict=True):
        # The line of the union is published too.
        assert published(left) == [] and len(published(right)) == len(panel.curves) + 1
        assert left.get_xlim() == right.get_xlim() == panel.xlim
        assert left.get_ylim() != right.get_ylim()
        # The same span of effects: in percent of each half's own line of reference.
        spans = [np.array(axes.get_ylim()) / level(axes) for axes in (left, right)]
        assert np.allclose(*spans, rtol=1e-6)
        assert right.get_title("left").startswith("published (digitised), 405M")
        colours = [line.get_color() for line in published(right)]
        assert len(set(colours)) == len(colours)
        assert set(colours) <= {line.get_color() for line in left.get_lines()}
    points = view.study.digitised.panels["4a"].curves["405M SP (PT on Pile) MaxLR 3e-04"].points
    line = published(theirs[0])[3]
    assert (line.get_xdata()[-1], line.get_ydata()[-1]) == points[-1]
    # A curve that comes in from above the axes does not squash the rest.
    ends = np.array([line.get_ydata()[-1] for line in published(theirs[0])[:5]])
    assert np.ptp(ends) > 0.15 * np.ptp(theirs[0].get_ylim())


def test_at_paper_scale_published_curves_stand_among_ours(pocket, figure_of):
    made = figure_of(pocket(name="paper").view("ibrahim2024/figure_04"))
    assert [len(published(axes)) for axes in made.axes] == [6, 6, 6, 6]
    for axes in made.axes:
        own = [one for one in axes.get_lines() if one not in published(axes) and len(one.get_xdata()) > 2]
        for of in (lambda line: line.get_zorder(), lambda line: line.get_linewidth()):
            assert max(map(of, published(axes))) < min(map(of, own))
    assert legend(made).count("published (digitised)") == 1


def test_without_published_curves_nothing_is_drawn_beside(pocket, figure_of):
    view = pocket().view("gupta2023/figure_01")
    made = figure_of(view)
    assert len(made.axes) == 2 and not any(published(axes) for axes in made.axes)
    assert view.exhibit.pairs(view) == []
    assert "could not be digitised" in " ".join(notes(view))
    assert "digitised from the paper's plots" in " ".join(notes(pocket().view("ibrahim2024/figure_04")))


@pytest.mark.parametrize("scale", ["pocket", "paper"])
def test_a_curve_without_counterpart_and_runs_that_are_missing_break_nothing(pocket, figure_of, scale):
    gone = ("ibrahim2024/405m/pile--sp/replay-0.05", "ibrahim2024/405m/pile+sp/")
    view = pocket(gone, name=scale).view("ibrahim2024/figure_05")
    first, *others = view.exhibit.panels[0].curves
    exhibit = changed(view.exhibit, curves=(first.model_copy(update={"published": ()}), *others))
    made = figure_of(view, exhibit)
    step = 2 if scale == "pocket" else 1
    assert [len(published(axes)) for axes in made.axes[step - 1 :: step]] == [6, 7, 7, 7]
    assert "5 % replay: not run" in legend(made)
    assert "(a) (b) final loss of the union: not run" in legend(made)
    groups = [pair.group for pair in exhibit.pairs(view)]
    assert [groups.count(name) for name in ("5a", "5b", "5c", "5d")] == [4, 5, 7, 7]


@pytest.mark.parametrize("scale", ["pocket", "paper"])
def test_with_no_receipts_at_all_the_published_curves_are_still_there(pocket, figure_of, scale):
    view = pocket(("",), name=scale).view("ibrahim2024/figure_05")
    made = figure_of(view)
    assert sum(len(published(axes)) for axes in made.axes) == 28
    assert "5 % replay: not run" in legend(made) and view.exhibit.pairs(view) == []


def test_pieces_of_a_published_curve_are_not_joined(pocket, figure_of):
    made = figure_of(pocket().view("ibrahim2024/figure_10"))
    annealed = published(made.axes[1])[3]
    lifted = [x for x, y in zip(annealed.get_xdata(), annealed.get_ydata(), strict=True) if math.isnan(y)]
    assert lifted == [179.14, 279.14]
    assert max(max(line.get_ydata()) for line in published(made.axes[3])) == pytest.approx(3e-4, rel=0.02)
    # Ours: annealed branches leave the trunk, so the pen is lifted; the trunk itself is one line.
    ours = made.axes[0].get_lines()
    assert np.isnan(ours[0].get_ydata()).sum() == 0 and np.isnan(ours[3].get_ydata()).sum() == 2


# -- pairs


def test_a_pair_is_the_last_common_point(pocket):
    view = pocket(seeds=(0,), more_seeds=None).view("ibrahim2024/figure_05")
    pairs = view.exhibit.pairs(view)
    assert len(pairs) == 28 and {pair.group for pair in pairs} == {"5a", "5b", "5c", "5d"}
    (one,) = view.runs("405m/pile--sp/replay-0")
    xs, losses = zip(*one.curve("pile"), strict=True)
    points = view.study.digitised.panels["5a"].curves["405M SP (PT on Pile)"].points
    end = min(xs[-1], points[-1][0])
    expected = np.interp(end, *zip(*points, strict=True)), np.interp(end, xs, losses)
    assert pairs[0] == ("5a", *map(pytest.approx, expected))
    (union,) = view.runs("405m/pile+sp")
    closing = [loss for i, loss in union.receipt.losses["pile"].curve if i in union.run.validation.closing]
    assert pairs[6] == ("5a", 2.168, pytest.approx(np.mean(closing)))


def test_a_chain_with_a_piece_missing_has_no_end(pocket, figure_of):
    view = pocket(("ibrahim2024/405m/sp-3x100/cosine/split-3",)).view("ibrahim2024/figure_10")
    made = figure_of(view)
    assert "Cosine, repeated (1 of 3 not run)" in legend(made)
    pairs = view.exhibit.pairs(view)
    assert {pair.group for pair in pairs} == {"10a"}  # no learning rates
    ends = {round(pair.published, 4) for pair in pairs}
    assert 2.546 not in ends and {2.6088, 2.5486, 2.5519} <= ends


# -- axes


def axes_of(panel, curves, levels=()):
    """Axes that have to fit curves {from scratch: ys over 0..100}."""
    from matplotlib.figure import Figure

    axes = _Axes(Figure().subplots(), panel, None, None, None)
    axes.lines = [(scratch, (list(np.linspace(0, 100, len(ys))), ys)) for scratch, ys in curves]
    axes.levels = list(levels)
    return axes


def test_limits_cut_a_transient_and_keep_what_lies_low():
    panel = Panel(y="x", xlim=(0, 100), settle=0.1, curves=("r",))
    flat = [3.0 - 0.001 * k for k in range(100)]
    spiked = [9.0, *flat[1:]]
    low, high = axes_of(panel, [(False, spiked)]).limits()
    assert high < 3.2 and low < flat[-1]
    assert axes_of(panel.model_copy(update={"settle": 0}), [(False, spiked)]).limits()[1] > 9
    # What begins low, as the loss before forgetting, is always inside, and so is a level.
    assert axes_of(panel, [(False, [2.0, *flat[1:]])]).limits()[0] < 2.0
    assert axes_of(panel, [(False, flat)], [2.5]).limits()[0] < 2.5
    # From scratch beside continued: the first 40 % may come in from above.
    slow = [3.0 + 4 * math.exp(-k / 8) for k in range(100)]
    assert (
        axes_of(panel, [(True, slow), (False, flat)]).limits()[1]
        < 3.3
        < axes_of(panel, [(True, slow)]).limits()[1]
    )
    assert axes_of(panel, []).limits() is None


def test_boundaries_stand_where_stages_begin_and_name_their_domains(pocket, figure_of):
    view = pocket().view("ibrahim2024/figure_11")
    made = figure_of(view)
    stages = view.exhibit.stages(view, view.exhibit.panels[0])
    shares = view.plan.shares("sp")
    assert [stage.name for stage in stages] == list(shares) and stages[0].start == 0
    assert sum(stage.billions for stage in stages) == pytest.approx(300, rel=0.02)
    for left, right in zip(stages, stages[1:], strict=False):
        assert right.start == pytest.approx(left.start + left.billions)
    # Numbers stand above them, as names would run into each other; the names stand in the legend.
    for axes in made.axes[:2]:
        assert [text.get_text() for text in axes.texts] == [str(k) for k in range(1, 8)]
    numbered = lambda names: ", ".join(f"{k} {name}" for k, name in enumerate(names, 1))  # noqa: E731
    there = ("CommonCrawl", "C4", "Github", "ArXiv", "Book", "Wikipedia", "StackExchange")
    names = {f"(a) (b) here: {numbered(shares)}", f"(a) (b) published: {numbered(there)}"}
    assert names <= {*legend(made)}


def test_both_halves_show_the_same_span_of_effects(pocket, figure_of):
    """In percent of a final loss that no line shows: scratch and continued runs share no start."""
    view = pocket().view("ibrahim2024/figure_06")
    made, panel = figure_of(view), view.exhibit.panels[0]
    levels = [
        np.mean([*panel.finals(view).values()]),
        view.counterparts.loss("405m/pile+sp", ("pile",)).value,
    ]
    spans = [[y / level for y in axes.get_ylim()] for axes, level in zip(made.axes, levels, strict=False)]
    assert spans[0] == pytest.approx(spans[1])
    for axes, level in zip(made.axes[:2], levels, strict=True):
        assert not [line for line in axes.get_lines() if set(line.get_ydata()) == {level}]
    # It is no value that is compared, as its curve is there.
    assert len(view.exhibit.ends(view, panel)) == len(panel.curves)


def test_starts_from_earlier_checkpoints_are_told_as_here_and_in_the_paper(pocket, figure_of):
    view = pocket().view("gupta2023/figure_08")
    run = view.planned("410m/pile@10000--sp/warmup-0")
    assert f"iter {run.parent_iteration} (10000), WU 0 %" in legend(figure_of(view))


def test_a_curve_that_nothing_makes_room_for_is_told(pocket, figure_of):
    made = figure_of(pocket().view("ibrahim2024/figure_06"))
    (note,) = [text.get_text() for text in made.axes[6].texts if "↑" in text.get_text()]
    (run,) = pocket().view("ibrahim2024/figure_06").runs("405m/pile")[:1]
    assert note == f"Pile ↑ {run.curve('german')[-1][1]:.2f}"


@pytest.mark.parametrize("inside", [True, False])
def test_the_entropy_rate_of_a_language_is_a_line_or_a_note(pocket, figure_of, inside):
    plain = figure_of(pocket(seeds=(0,), more_seeds=None).view("ibrahim2024/figure_13"))
    rate = sum(plain.axes[0].get_ylim()) / 2 if inside else 0.2
    made = figure_of(pocket(entropy=rate, seeds=(0,), more_seeds=None).view("ibrahim2024/figure_13"))
    heights = {line.get_ydata()[0] for line in made.axes[0].get_lines() if len(line.get_xdata()) == 2}
    assert heights == ({rate} if inside else set())
    if inside:
        assert "entropy rate" in legend(made)
    else:
        assert made.axes[0].get_legend().get_title().get_text() == "entropy rate: 0.20"


# -- bars and planes


def test_published_bars_stand_below_ours_and_at_paper_scale_on_them(pocket, figure_of):
    view = pocket().view("ibrahim2024/figure_01")
    made = figure_of(view)
    assert [len(axes.patches) for axes in made.axes] == [9] * 6
    assert [bar.get_height() for bar in made.axes[5].patches[:3]] == [47.5, 47.7, 48.0]
    # The legend has the colours of the bars: replay of 5 % and of 25 % side by side.
    colours = {bar.get_facecolor() for axes in made.axes[:3] for bar in axes.patches}
    keys = [patch.get_facecolor() for patch in made.legends[0].findobj(Rectangle)]
    assert len(keys) == 4 and {*keys} == colours
    titles = [axes.get_title("left") for axes in made.axes[3:]]
    assert titles == ["published (digitised)", "published (printed)", "published (printed)"]
    pairs = view.exhibit.pairs(view)
    assert len(pairs) == 18 and len({pair.group for pair in pairs}) == 6
    assert [pair.published for pair in pairs[:3]] == [1.99, 1.89, 1.87]
    made = figure_of(pocket(name="paper").view("ibrahim2024/figure_01"))
    assert [len(published(axes)) for axes in made.axes] == [9, 9, 9] and "published" in legend(made)
    gone = figure_of(pocket(("ibrahim2024/10b/pile+sp",)).view("ibrahim2024/figure_01"))
    assert [len(axes.patches) for axes in gone.axes[:3]] == [9, 8, 8]
    assert "not run" in [text.get_text() for text in gone.axes[1].texts]


def test_compute_is_in_the_papers_unit_and_a_bar_is_a_mean_over_seeds(pocket):
    view = pocket().view("ibrahim2024/figure_01")
    compute, loss, _ = view.exhibit.panels
    group = view.exhibit.groups[1]
    assert compute.height(view, group, group.runs[2]).value == pytest.approx(
        2, abs=0.01
    )  # 600B of 300B units
    finals = [one.final for one in view.runs(group.runs[0])]
    losses = [(final["pile"].loss + final["sp"].loss) / 2 for final in finals]
    bar = loss.height(view, group, group.runs[0])
    assert len(losses) == 3 and bar.value == pytest.approx(np.mean(losses))
    of_seeds = 4.302653 * np.std(losses, ddof=1) / 3**0.5
    each = [
        np.mean([one.sequence_losses(c) for one in view.runs(group.runs[0])], axis=0) for c in ("pile", "sp")
    ]
    documents = [1.96 * np.std(of, ddof=1) / len(of) ** 0.5 / 2 for of in each]
    assert bar.error == pytest.approx(math.hypot(of_seeds, *documents), rel=1e-6)


def test_a_plane_has_one_path_a_run_whatever_the_number_of_seeds(pocket, figure_of):
    view = pocket().view("gupta2023/figure_04")
    made = figure_of(view)
    paths = [line for line in made.axes[0].get_lines() if len(line.get_xdata()) > 1]
    assert len(paths) == len(view.exhibit.curves)
    first = [one.curve("sp")[0][1] for one in view.runs(view.exhibit.curves[0].runs[0])]
    assert paths[0].get_xdata()[0] == pytest.approx(np.exp(np.mean(first)))
    # Of a run with three seeds, which only the other paper has here.
    view = pocket().view("ibrahim2024/figure_05")
    curves = (Curve(runs=("405m/pile--sp/replay-0",)),)
    exhibit = Plane(title="t", see="s", x="sp", y="pile", until=300, curves=curves)
    (path,) = [one for one in figure_of(view, exhibit).axes[0].get_lines() if len(one.get_xdata()) > 1]
    first = [one.curve("sp")[0][1] for one in view.runs("405m/pile--sp/replay-0")]
    assert len(first) == 3 and path.get_xdata()[0] == pytest.approx(np.exp(np.mean(first)))
    assert "mean losses over" in " ".join(exhibit.notes(view))
    assert r_squared([1, 2, 3], [2, 4, 6]) == pytest.approx(1) and math.isnan(r_squared([1, 1], [2, 3]))
    assert "not run" in [
        text.get_text() for text in figure_of(pocket(("",)).view("gupta2023/figure_04")).axes[0].texts
    ]


# -- seeds


def test_means_are_over_the_seeds_that_all_have():
    assert shared([{0: "a", 1: "b", 2: "c"}, {}, {0: "d"}]) == [["a"], [], ["d"]]
    assert shared([{0: "a"}, {1: "b"}]) == [["a"], ["b"]] and shared([{}, {}]) == [[], []]


def test_runs_with_different_seeds_are_drawn_on_the_common_ones(pocket, figure_of):
    # One run with three seeds, one with a single.
    more = MoreSeeds(seeds=(1, 2), runs=("ibrahim2024/405m/pile--sp/replay-0",))
    view = pocket(seeds=(0,), more_seeds=more).view("ibrahim2024/figure_13")
    made = figure_of(view)
    runs = view.runs("405m/pile--sp/replay-0")
    assert len(runs) == 3 and len(view.runs("405m/pile--sp/keep-optimizer")) == 1
    line = made.axes[0].get_lines()[0]
    assert list(line.get_ydata()) == pytest.approx([loss for _, loss in runs[0].curve("pile")])
    assert not made.axes[0].collections  # no band of seeds that the line is not of
    text = " ".join(notes(view))
    assert "1 to 3 seeds a run" in text and "the seeds that all runs of a panel have" in text
    # Its published ends lie within what can be read off, so they are drawn and not counted.
    ends = view.exhibit.ends(view, view.exhibit.panels[0])
    assert view.exhibit.pairs(view) == [] and len(ends) == 2
    assert agreement(ends) is not None


# -- all of them


@pytest.mark.slow
def test_text_is_large_enough_and_every_figure_fits_a_page(pocket, figure_of):
    from matplotlib.text import Text

    catalogue = pocket().catalogue
    for key in (key for key, one in catalogue.exhibits.items() if isinstance(one, FigureKind)):
        made = figure_of(pocket().view("/".join(key)))
        texts = [text for text in made.findobj(Text) if text.get_text().strip() and text.get_visible()]
        assert texts and min(text.get_fontsize() for text in texts) >= 7, key
        width, height = made.get_size_inches()
        assert width <= 6.9 and height <= 9, key


def test_a_corpus_that_the_scale_lacks_is_told(pocket, figure_of):
    view = pocket(seeds=(0,), more_seeds=None).view("ibrahim2024/figure_13")
    exhibit = changed(
        view.exhibit, y="german", reference=None, curves=(Curve(runs=("405m/sp",), label="SP"),)
    )
    assert "(a) SP: not measured on german" in legend(figure_of(view, exhibit))


def test_fonts_are_matplotlibs_own_whatever_its_list_says(monkeypatch):
    """The list lies below the user's home: it may be of another installation, or of a half-removed one."""
    import matplotlib
    from matplotlib import font_manager

    others = [font for font in font_manager.fontManager.ttflist if "DejaVu" not in font.name]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", others)
    with drawing():
        path = font_manager.findfont("DejaVu Sans", fallback_to_default=False)
        assert path.startswith(matplotlib.get_data_path())
    assert font_manager.fontManager.ttflist == others
