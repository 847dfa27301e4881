"""Samples of a built corpus to validate on."""

import numpy as np
from tiny_corpora import LENGTH, flip, refused

from cpt_repro.data.corpus import validation_sample


def test_a_validation_sample_follows_the_declared_shares(local):
    held_out = [
        {"id": str(n), "domain": domain, "text": " ".join(f"{domain}{(n * k) % 37}" for k in range(40))}
        for n in range(40)
        for domain in ("prose", "law")
    ]
    local.write(validation=held_out)
    local.save(domains={"prose": 0.75, "law": 0.25})  # of the text, each is about one half
    local.build()
    sample = validation_sample(local.project, "tiny", "pile", 12)
    for domain, count in (("prose", 9), ("law", 3)):
        sequences = local.open(domain, "validation")
        rows = {row.tobytes() for row in sequences.take(range(len(sequences)))}
        assert sum(row.tobytes() in rows for row in sample) == count


def test_a_validation_sample_is_fixed_and_fair(local):
    local.build()

    def sample(n):
        return validation_sample(local.project, "tiny", "pile", n)

    rows = sample(12)
    assert rows.shape == (12, LENGTH + 1) and len({row.tobytes() for row in rows}) == 12
    assert np.array_equal(rows, sample(12))
    assert [round(12 * share) for share in local.fingerprint().shares.values()] == [6, 6]
    wanted = []
    for domain in ("law", "prose"):  # the middles of six equal stretches of each
        sequences = local.open(domain, "validation")
        wanted += [*sequences.take([len(sequences) * (2 * k + 1) // 12 for k in range(6)])]
    assert sorted(row.tobytes() for row in rows) == sorted(row.tobytes() for row in wanted)
    assert not np.array_equal(rows, wanted)
    # row by row, `validation_draw` says of which domain it is, and which of those drawn of it
    of = {"law": wanted[:6], "prose": wanted[6:]}
    draw = local.fingerprint().validation_draw(12)
    assert np.array_equal(rows, [of[domain][k] for domain, k in draw])
    assert "of corpus 'pile', there are" in refused(lambda: sample(10_000))
    path = local.corpus / "validation" / "law" / "part.00000" / "shard.00000.mds"
    flip(path)  # losses are not taken on damaged shards
    assert f"{path}: the shard is altered" in refused(lambda: sample(4))
