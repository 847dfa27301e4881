"""The reservoir's shares (Ibrahim A.1, Eq. 5) and mixtures with replay."""

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cpt_repro.planning.mixture import corpus_part, reservoir_shares, streams, with_replay


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([300], [1]),
        # D_0 300, D_1 100 with 5 % replay: R_2 holds 300 + 5 of D_0 and 95 of D_1 in 400.
        ([300, 100], [305 / 400, 95 / 400]),
        # R_1: D_0 alone. R_2: (300 + 7.8)/456 = 0.675 and 148.2/456 = 0.325. R_3 of 536: D_0 300 + 7.8 +
        # 0.675 x 4 = 310.5; D_1 148.2 + 0.325 x 4 = 149.5; D_2 76.
        ([300, 156, 80], [310.5 / 536, 149.5 / 536, 76 / 536]),
    ],
)
def test_reservoir_by_hand(sizes, expected):
    assert reservoir_shares(sizes, 0.05) == pytest.approx(expected, rel=1e-12)


@given(st.lists(st.floats(0.1, 1000), min_size=1, max_size=8), st.floats(0, 1))
def test_reservoir_sums_to_one(sizes, replay_fraction):
    shares = reservoir_shares(sizes, replay_fraction)
    assert all(0 <= share <= 1 + 1e-12 for share in shares) and sum(shares) == pytest.approx(1, abs=1e-9)
    assert reservoir_shares(sizes, 0) == pytest.approx([size / sum(sizes) for size in sizes], rel=1e-9)


@pytest.mark.parametrize("replay_fraction", [0.05, 0.3])
def test_reservoir_is_what_a_buffer_would_hold(replay_fraction):
    """All that was trained on goes into the buffer; a stage replays from it as it stood when it began."""
    sizes, draw = [6000, 3000, 1500, 2000], random.Random(0)
    buffer: list[int] = []
    for number, size in enumerate(sizes):
        count = round(replay_fraction * size) if buffer else 0
        replayed = draw.choices(buffer, k=count) if buffer else []
        buffer = buffer + replayed + [number] * (size - count)
    seen = Counter(buffer)
    simulated = [seen[number] / len(buffer) for number in range(len(sizes))]
    assert reservoir_shares(sizes, replay_fraction) == pytest.approx(simulated, abs=0.01)


def test_replay_comes_first_and_takes_its_share():
    old = (corpus_part("a", {"x": 0.75, "y": 0.25}, 1, 0),)
    new = (corpus_part("b", {"z": 1.0}, 1, 100),)
    replay, rest = with_replay(new, [(300, old)], 0.2)
    assert (replay.share, rest.share) == (0.2, 0.8)
    assert [(s.corpus, s.domain, s.start) for s in streams((replay, rest))] == [
        ("a", "x", 0),
        ("a", "y", 0),
        ("b", "z", 100),
    ]
