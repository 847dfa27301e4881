"""A built corpus: its fingerprint, its sequences, a sample to validate on, its copy elsewhere."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np

from cpt_repro.data.shards import Sequences, upload
from cpt_repro.declarations.manifests import Split
from cpt_repro.errors import UserError
from cpt_repro.project import Project
from cpt_repro.records.receipts import Fingerprint, read_fingerprint


def load_fingerprint(folder: Path) -> Fingerprint:
    """What was built into the folder of a corpus; `UserError` if it is not there or was edited."""
    path = folder / "fingerprint.json"
    if not path.is_file():
        do = f"Build it: `cpt-repro corpus {folder.name} --scale {folder.parent.name}`."
        raise UserError(f"the corpus '{folder.name}' is not built.", where=str(path), do=do)
    return read_fingerprint(path)


def upload_corpus(project: Project, scale_name: str, corpus: str, remote: str) -> None:
    """Copies a built corpus to `<remote>/<scale>/<corpus>`, for `shards_remote`; the fingerprint last."""
    folder, names = project.data / scale_name / corpus, []
    for split, domains in load_fingerprint(folder).splits.items():
        for domain, built in domains.items():
            names += [f"{split}/{domain}/{name}" for name in (*built.shards, "index.json")]
    names += ["validation.jsonl", "fingerprint.json"]
    upload(folder, names, f"{remote.rstrip('/')}/{scale_name}/{corpus}")


def open_domain(
    project: Project,
    scale_name: str,
    corpus: str,
    split: Split,
    domain: str,
    fingerprint: Fingerprint,
    check: bool = True,
) -> Sequences:
    """The sequences of a domain, their shards compared with the corpus' fingerprint.

    Without `check` only their sizes are: of several processes that read one folder one need check it. Shards
    that are not here are fetched at their first use from the project's `shards_remote`, if it has one.
    """
    place, remote = f"{scale_name}/{corpus}/{split}/{domain}", project.shards_remote
    far = f"{remote.rstrip('/')}/{place}" if remote else None
    hashes = fingerprint.splits[split][domain].shards
    return Sequences(project.data / place, fingerprint.sequence_length + 1, hashes, far, check)


def _quotas(shares: dict[str, float], available: dict[str, int], n: int) -> dict[str, int]:
    """Splits n in proportion to the shares (largest remainder), never more than is available of a domain."""
    quotas = dict.fromkeys(shares, 0)
    while (left := n - sum(quotas.values())) > 0:
        # What a small domain cannot give is shared out among the others.
        open_ = {name: share for name, share in shares.items() if share and quotas[name] < available[name]}
        exact = {name: left * share / sum(open_.values()) for name, share in open_.items()}
        extra = {name: int(value) for name, value in exact.items()}
        by_remainder = sorted(exact, key=lambda name: (extra[name] - exact[name], name))
        for name in by_remainder[: left - sum(extra.values())]:
            extra[name] += 1
        for name, count in extra.items():
            quotas[name] = min(quotas[name] + count, available[name])
    return quotas


def validation_sample(
    project: Project, scale_name: str, corpus: str, n: int, check: bool = True
) -> np.ndarray:
    """A fixed sample of `n` validation sequences: shape (n, L+1), uint16.

    Every domain gives its share (largest remainder), evenly spaced over its sequences; the order is shuffled
    by a fixed seed, so that the first rows are a fair sample too. More than there is: `UserError`.
    """
    fingerprint = load_fingerprint(project.data / scale_name / corpus)
    available = {domain: built.sequences for domain, built in fingerprint.splits["validation"].items()}
    possible = sum(count for domain, count in available.items() if fingerprint.shares[domain])
    if n > possible:
        what = f"{n} validation sequences are wanted of corpus '{corpus}', there are {possible}."
        do = "Lower 'validation.sequences' of the scale, or give the corpus more validation text."
        raise UserError(what, do=do)
    rows = []
    for domain, quota in _quotas(fingerprint.shares, available, n).items():
        if quota:
            # Middles of `quota` equal stretches.
            chosen = (2 * np.arange(quota) + 1) * available[domain] // (2 * quota)
            sequences = open_domain(project, scale_name, corpus, "validation", domain, fingerprint, check)
            rows.append(sequences.take(chosen))
    rng = random.Random(0)
    return np.concatenate(rows)[np.argsort([rng.random() for _ in range(n)])]
