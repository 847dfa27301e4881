"""Agreement of published and reproduced values."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

from cpt_repro.exhibits.agreement import Pair, agreement


@settings(max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=2, max_size=12))
def test_one_group_agrees_with_scipy_and_with_counting(values):
    found = agreement([Pair("a", float(x), float(y)) for x, y in values], resamples=20)
    if len({x for x, _ in values}) > 1 and len({y for _, y in values}) > 1:
        assert found.spearman == pytest.approx(spearmanr(*zip(*values, strict=True)).statistic, abs=6e-5)
    else:
        assert found.spearman is None
    same = [
        0.5 if y == w else float((x < v) == (y < w))
        for k, (x, y) in enumerate(values)
        for v, w in values[k + 1 :]
        if x != v
    ]
    assert found.signs == (pytest.approx(sum(same) / len(same), abs=6e-5) if same else None)
    assert (found.pairs, found.groups) == (len(values), 1)


def test_only_values_of_one_group_are_compared():
    # Two groups at different levels, each in the wrong order: pooled as they are, they would seem to agree.
    pairs = [("low", 1.0, 12.0), ("low", 2.0, 11.0), ("high", 101.0, 1020.0), ("high", 102.0, 1010.0)]
    pairs = [Pair(*one) for one in pairs]
    found = agreement([*pairs, Pair("alone", 5.0, 5.0)])
    assert (found.spearman, found.signs, found.pairs, found.groups) == (-1, 0, 4, 2)
    assert found.spearman_low is None and found.signs_high is None  # two values a group do not vary
    assert found == agreement([*pairs, Pair("alone", 5.0, 5.0)])
    assert agreement([Pair("a", 1.0, 1.0), Pair("b", 1.0, 1.0)]) is None and agreement([]) is None


def test_the_interval_holds_the_value_and_narrows():
    draw = random.Random(3)
    pairs = [Pair("a", x, x + 0.3 * draw.random()) for x in (draw.random() for _ in range(60))]
    few, many = agreement(pairs[:8]).model_dump(), agreement(pairs).model_dump()
    for name in ("spearman", "signs"):
        assert many[f"{name}_low"] < many[name] < many[f"{name}_high"] <= 1
        assert many[f"{name}_high"] - many[f"{name}_low"] < few[f"{name}_high"] - few[f"{name}_low"]
