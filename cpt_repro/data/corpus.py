"""A built corpus: its fingerprint, its sequences, a sample to validate on, its copy elsewhere."""

from __future__ import annotations

from collections import Counter
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
    """The sequences of a domain, their shards compared with the corpus' fingerprint (see `Sequences`).

    Without `check` only their sizes are: of several processes that read one folder one need check it.
    """
    place, remote = f"{scale_name}/{corpus}/{split}/{domain}", project.shards_remote
    far = f"{remote.rstrip('/')}/{place}" if remote else None
    hashes = fingerprint.splits[split][domain].shards
    return Sequences(project.data / place, fingerprint.sequence_length + 1, hashes, far, check)


def validation_sample(
    project: Project, scale_name: str, corpus: str, n: int, check: bool = True
) -> np.ndarray:
    """A fixed sample of `n` validation sequences: shape (n, L+1), uint16; more than there is: `UserError`.

    What is drawn of a domain (`Fingerprint.validation_draw`) is evenly spaced over its sequences.
    """
    fingerprint = load_fingerprint(project.data / scale_name / corpus)
    try:
        draw = fingerprint.validation_draw(n)
    except ValueError as error:
        what = f"{n} validation sequences are wanted of corpus '{corpus}', {error}."
        do = "Lower 'validation.sequences' of the scale, or give the corpus more validation text."
        raise UserError(what, do=do) from None
    taken = {}
    for domain, quota in Counter(domain for domain, _ in draw).items():
        # Middles of `quota` equal stretches.
        available = fingerprint.splits["validation"][domain].sequences
        chosen = (2 * np.arange(quota) + 1) * available // (2 * quota)
        sequences = open_domain(project, scale_name, corpus, "validation", domain, fingerprint, check)
        taken[domain] = sequences.take(chosen)
    return np.stack([taken[domain][k] for domain, k in draw])
