"""The built corpora of a scale as training reads them: opened, verified and sampled once per process."""

from __future__ import annotations

import numpy as np
import torch

from cpt_repro.data.corpus import load_fingerprint, open_domain, validation_sample
from cpt_repro.data.shards import REBUILD, Sequences
from cpt_repro.errors import UserError
from cpt_repro.files import file_digest
from cpt_repro.planning.plan import Plan
from cpt_repro.records.receipts import Fingerprint


class Corpora:
    """The corpora of a plan's scale; with `check`, as in one rank of a node, shards' hashes are compared."""

    def __init__(self, plan: Plan, check: bool = True):
        self.plan, self.check, self._scale = plan, check, (plan.project, plan.scale.name)
        self.folder = plan.project.data / plan.scale.name
        self.tokenizer = self.folder / "tokenizer"
        self._open: dict[tuple[str, str], Sequences] = {}
        self._validation: dict[tuple[str, int], torch.Tensor] = {}
        self._fingerprints: dict[str, Fingerprint] = {}

    def sequences(self, corpus: str, domain: str) -> Sequences:
        """Training sequences of one domain."""
        if (corpus, domain) not in self._open:
            place = (*self._scale, corpus, "train", domain)
            self._open[corpus, domain] = open_domain(*place, self.fingerprint(corpus), self.check)
        return self._open[corpus, domain]

    def validation(self, corpus: str, n: int) -> torch.Tensor:
        """The fixed validation sample (n, L + 1), int64."""
        if (corpus, n) not in self._validation:
            self.fingerprint(corpus)
            sample = validation_sample(*self._scale, corpus, n, self.check)
            self._validation[corpus, n] = torch.from_numpy(sample.astype(np.int64))
        return self._validation[corpus, n]

    def fingerprint(self, corpus: str) -> Fingerprint:
        """What was built of a corpus; of another manifest, length or tokenizer, it is a `UserError`."""
        if corpus not in self._fingerprints:
            built, fault = load_fingerprint(self.folder / corpus), None
            wanted, length = self.plan.manifest(corpus).digest, self.plan.scale.sequence_length
            tokenizer = self.tokenizer / "tokenizer.json"
            if built.manifest != wanted:
                fault = f"it was built from the manifest {built.manifest}, which is now {wanted}."
            elif built.sequence_length != length:
                fault = f"its sequences have {built.sequence_length} tokens; {length} are wanted."
            elif tokenizer.exists() and (now := file_digest(tokenizer)) != (before := built.tokenizer):
                fault = f"it was made with another tokenizer: SHA-256 {before}, which is now {now}."
            if fault:
                raise UserError(fault, where=str(self.folder / corpus), do=REBUILD)
            self._fingerprints[corpus] = built
        return self._fingerprints[corpus]
