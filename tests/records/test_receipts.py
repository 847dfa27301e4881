"""What the records themselves can tell."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cpt_repro.records.receipts import _quotas


@pytest.mark.parametrize(
    ("available", "n", "quotas"),
    [((99, 99, 99), 7, (4, 2, 1)), ((99, 99, 1), 10, (6, 3, 1)), ((2, 2, 2), 6, (2, 2, 2))],
)
def test_quotas_by_hand(available, n, quotas):
    given = _quotas({"a": 0.5, "b": 0.3, "c": 0.2}, dict(zip("abc", available, strict=True)), n)
    assert tuple(given.values()) == quotas


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 40)), min_size=1, max_size=8), st.data())
def test_quotas_sum_and_stay_within_what_is_there(domains, data):
    shares = {f"d{i}": share for i, (share, _) in enumerate(domains)}
    available = {f"d{i}": count for i, (_, count) in enumerate(domains)}
    possible = sum(count for name, count in available.items() if shares[name])
    n = data.draw(st.integers(0, possible))
    quotas = _quotas(shares, available, n)
    assert sum(quotas.values()) == n
    assert all(quotas[name] <= (available[name] if shares[name] else 0) for name in shares)
