"""The global sample order: shares, replay in the order first seen, epochs, ranks, continuation."""

import hashlib
from collections import Counter, defaultdict
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cpt_repro.data.order import Order, Permutation, cumulative_counts
from cpt_repro.planning.mixture import Part, Stream, streams

# -- permutations


@given(st.integers(1, 5000), st.text(max_size=20), st.data())
def test_permutation_is_a_bijection_with_random_access(size, key, data):
    permutation = Permutation(size, key)
    whole = permutation(np.arange(size))
    assert sorted(whole.tolist()) == list(range(size))
    positions = data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=20))
    assert permutation(np.array(positions)).tolist() == whole[positions].tolist()
    assert permutation(np.arange(size)[::-1]).tolist() == whole[::-1].tolist()


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 15, 16, 17, 255, 256, 257, 4095, 4096, 4097, 70000])
def test_permutation_of_sizes_around_powers_of_two(size):
    assert np.array_equal(np.sort(Permutation(size, "key")(np.arange(size))), np.arange(size))


def test_permutation_mixes_and_differs_by_key():
    # A random permutation of 4,096 leaves about one in place, and neighbours are 1,365 apart on average.
    keys = [f"pile/law/seed-{seed}/epoch-{epoch}" for seed in range(2) for epoch in range(2)]
    values = [Permutation(4096, key)(np.arange(4096)) for key in keys]
    assert len({tuple(each) for each in values}) == 4
    assert all((each == np.arange(4096)).sum() < 8 for each in values)
    assert all(1200 < np.abs(np.diff(each)).mean() < 1530 for each in values)


# -- counts


def leaf(share, name, start=0):
    return Part(share=share, stream=Stream(corpus="c", domain=name, start=start))


weights = st.lists(st.integers(1, 1000), min_size=1, max_size=8).map(
    lambda weights: [weight / sum(weights) for weight in weights]
)


@st.composite
def mixtures(draw, depth=2):
    """Nested parts; the shares of each level sum to 1."""
    parts = []
    for index, share in enumerate(draw(weights)):
        if depth and draw(st.booleans()):
            parts.append(Part(share=share, parts=draw(mixtures(depth - 1))))
        else:
            parts.append(leaf(share, f"{depth}-{index}"))
    return tuple(parts)


@given(mixtures(), st.integers(0, 10**6), st.integers(1, 64))
def test_counts_are_monotone_and_whole(mixture, n, more):
    before, after = cumulative_counts(mixture, n), cumulative_counts(mixture, n + more)
    assert len(before) == len(streams(mixture))
    assert sum(before) == n and sum(after) == n + more
    assert all(0 <= low <= high for low, high in zip(before, after, strict=True))


@given(weights, st.integers(1, 10**6))
def test_every_share_is_right_in_the_long_run(shares, n):
    counts = cumulative_counts(tuple(leaf(share, str(i)) for i, share in enumerate(shares)), n)
    # Each stage of the splitting rounds once.
    assert all(abs(count - share * n) <= len(shares) for count, share in zip(counts, shares, strict=True))
    assert abs(counts[0] - shares[0] * n) <= 0.5 + 1e-6


@given(st.floats(0.001, 0.999), st.integers(1, 1104), st.integers(0, 10**5))
def test_first_part_is_within_one_of_its_share_in_any_batch(share, batch, number):
    mixture = (leaf(share, "old"), leaf(1 - share, "new"))
    low, high = (cumulative_counts(mixture, k * batch)[0] for k in (number, number + 1))
    assert abs(high - low - share * batch) < 1 + 1e-6


def test_counts_by_hand():
    # 5 % replay: round-half-up of n/20, so the 10th sample is the first old one, then every 20th.
    mixture = (leaf(0.05, "old"), leaf(0.95, "new"))
    old = [cumulative_counts(mixture, n)[0] for n in range(51)]
    assert [n for n in range(1, 51) if old[n] > old[n - 1]] == [10, 30, 50]
    # Shares 1/2, 1/4, 1/4 of 6: 3; of the other 3 half, rounded up, 2; 1 is left.
    assert cumulative_counts((leaf(0.5, "a"), leaf(0.25, "b"), leaf(0.25, "c")), 6) == [3, 2, 1]


@pytest.mark.parametrize("shares", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (0.5, 0.5, 0), (0.3, 0.7, 0, 0), (0, 1)])
def test_shares_of_nought_are_allowed(shares):
    mixture = tuple(leaf(share, str(i)) for i, share in enumerate(shares))
    assert cumulative_counts(mixture, 100) == [round(100 * share) for share in shares]


# -- orders of the smoke scale's runs


@pytest.fixture(scope="module")
def plan(plan_of):
    return plan_of("smoke")


def made_up_sizes(plan, factor=1):
    """Sequences of each domain, made up, so that no corpus needs to be built."""
    return {
        (corpus, domain): factor * (211 + 37 * number)
        for corpus in plan.scale.corpora
        for number, domain in enumerate(plan.shares(corpus))
    }


def order_of(plan, name, factor=1):
    training = plan.find("ibrahim2024", name)[0].training
    sizes, batch = made_up_sizes(plan, factor), training.batch_sequences
    return training, Order(training.mixture, sizes, batch, training.seed, training.batch_offset)


def by_domain(order, iterations):
    """(corpus, domain) -> sequences in the order in which training meets them; the counts of each batch."""
    seen, counts = defaultdict(list), []
    for k in range(iterations):
        batch = order.batch(k)
        counts.append(Counter())
        for stream, indices in batch:
            seen[stream.corpus, stream.domain] += indices.tolist()
            counts[-1][stream.corpus] += len(indices)
        assert sum(counts[-1].values()) == order.batch_size
    return seen, counts


ARMS = [("sp", r) for r in (0.005, 0.01, 0.05, 0.1, 0.5)]
ARMS += [("german", r) for r in (0.01, 0.05, 0.1, 0.25, 0.5)]


@pytest.fixture(scope="module")
def first_seen(plan):
    """name of a run -> (corpus, domain) -> its sequences in the order in which training meets them"""
    orders = {
        name: order_of(plan, name)
        for name in ("405m/pile", *(f"405m/pile--{c}/replay-0" for c in ("sp", "german")))
    }
    return {name: by_domain(order, training.iterations)[0] for name, (training, order) in orders.items()}


@pytest.mark.parametrize(("corpus", "share"), ARMS)
def test_replay_has_its_share_and_the_order_first_seen(plan, first_seen, corpus, share):
    training, order = order_of(plan, f"405m/pile--{corpus}/replay-{share:g}")
    seen, counts = by_domain(order, training.iterations)
    assert all(abs(batch["pile"] - share * training.batch_sequences) < 1 for batch in counts)
    total = sum(batch["pile"] for batch in counts)
    assert abs(total - share * training.iterations * training.batch_sequences) <= 0.5 + 1e-6
    earlier = first_seen["405m/pile"], first_seen[f"405m/pile--{corpus}/replay-0"]
    for key, indices in seen.items():  # the new data are thinned out, and keep their order too
        assert indices == earlier[key[0] == corpus][key][: len(indices)]
    assert {key[0] for key in seen} == {"pile", corpus}
    # and the domains keep their upstream shares
    for domain, part in plan.shares("pile").items():
        assert abs(len(seen.get(("pile", domain), [])) - part * total) <= len(plan.shares("pile"))


def test_stages_replay_every_earlier_stage_in_its_order(plan):
    stages = [f"405m/pile--sp-domains/stage-{k}" for k in (1, 2, 3)]
    first_seen = {}
    for name in ("405m/pile", *stages):
        training, order = order_of(plan, name)
        seen, _ = by_domain(order, training.iterations)
        for key, indices in seen.items():
            earlier = first_seen.setdefault(key, indices)
            assert indices == earlier[: len(indices)]
    domains = list(plan.shares("sp"))
    assert set(first_seen) >= {("sp", domain) for domain in domains[:3]}


def test_batch_offset_goes_on_exactly(plan):
    name = "405m/sp-3x100/infinite-cosine/split-2"
    trunk, order = order_of(plan, name)
    branch, annealed = order_of(plan, f"{name}-annealed")
    assert branch.batch_offset == branch.start.iteration > 0
    assert branch.batch_offset + branch.iterations == trunk.iterations
    for k in reversed(range(branch.iterations)):  # batches may be asked for in any order
        expected, actual = order.batch(branch.batch_offset + k), annealed.batch(k)
        assert [(s, i.tolist()) for s, i in expected] == [(s, i.tolist()) for s, i in actual]


def test_splits_read_on_where_the_last_one_ended(plan):
    seen = []
    for k in (1, 2, 3):
        training, order = order_of(plan, f"405m/sp-3x100/cosine/split-{k}", factor=50)
        seen.append(by_domain(order, training.iterations)[0])
    whole = by_domain(order_of(plan, "405m/sp", factor=50)[1], 293)[0]
    for key in seen[0]:
        joined = [index for split in seen for index in split[key]]
        # Rounding of starts and of the splits' lengths may repeat or skip a few sequences at a boundary.
        again = len(joined) - len(set(joined))
        skipped = len(set(whole[key][: len(joined)]) - set(joined))
        assert again <= 16 and skipped <= 16
        assert seen[0][key] == whole[key][: len(seen[0][key])]


@given(st.integers(1, 60), st.integers(1, 32), st.integers(0, 5))
@settings(max_examples=50)
def test_epochs_wrap_to_another_order(size, batch, seed):
    order = Order((leaf(1.0, "d"),), {("c", "d"): size}, batch, seed, 0)
    needed = -(-3 * size // batch)
    flow = np.concatenate([indices for k in range(needed) for _, indices in order.batch(k)])[: 3 * size]
    epochs = flow.reshape(3, size)
    assert all(sorted(epoch.tolist()) == list(range(size)) for epoch in epochs)
    if size >= 12:
        assert len({tuple(epoch) for epoch in epochs.tolist()}) == 3


def test_a_start_beyond_the_end_is_a_later_epoch():
    from_start = Order((leaf(1.0, "d"),), {("c", "d"): 10}, 5, 0, 0)
    later = Order((leaf(1.0, "d", start=15),), {("c", "d"): 10}, 5, 0, 0)
    for k in range(3):
        assert later.batch(k)[0][1].tolist() == from_start.batch(k + 3)[0][1].tolist()


class MadeUp(int):
    """Stands for so many sequences of a domain: a sequence is its own number, repeated."""

    def __len__(self):
        return int(self)

    def take(self, indices):
        return np.repeat(np.asarray(indices, dtype=np.uint16)[:, None], 3, axis=1)


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_any_number_of_ranks_sees_the_same_global_batch(plan, ranks):
    from cpt_repro.training.batches import Batches

    training, order = order_of(plan, "405m/pile--sp/replay-0.05")
    corpora = SimpleNamespace(sequences=lambda *key: MadeUp(made_up_sizes(plan)[key]))
    parts = [Batches(training, corpora, rank, ranks) for rank in range(ranks)]
    for k in (0, 1, 2, training.iterations - 1):
        rows = [part[k] for part in parts]
        assert {len(own) for own in rows} == {training.batch_sequences // ranks}
        expected = [index for _, indices in order.batch(k) for index in indices]
        assert np.concatenate([own.numpy() for own in rows])[:, 0].tolist() == expected


@given(mixtures(), st.integers(1, 20), st.integers(0, 50), st.integers(0, 30))
def test_batches_together_are_the_batches_one_by_one(mixture, batch, first, number):
    sizes = {(stream.corpus, stream.domain): 7 for stream in streams(mixture)}  # several epochs
    order = Order(mixture, sizes, batch, seed=0, offset=3)
    together = order.batches(first, first + number)
    for one, parts in zip(range(first, first + number), together, strict=True):
        alone = order.batch(one)
        assert [(stream, i.tolist()) for stream, i in parts] == [(s, i.tolist()) for s, i in alone]
        assert sum(len(indices) for _, indices in parts) == batch


def test_order_is_the_same_as_ever(plan):
    """Regression: if this fails while smoke's shares and batch are as they were, every receipt is stale."""
    training, order = order_of(plan, "405m/pile--sp-domains/stage-2")
    assert training.batch_sequences == 16
    total = hashlib.sha256()
    for k in range(70):
        for stream, indices in order.batch(k):
            total.update(f"{stream.corpus}/{stream.domain}".encode() + indices.astype("<i8").tobytes())
    assert total.hexdigest() == "719b4fafdec9ca2268fd3c6a52dd57a951fbd6d2d8780cf15449622a02572628"
