"""The receipts and evaluations behind one exhibit, read once, with their hashes and with what is missing."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

from cpt_repro.declarations.exhibits import Exhibits, absent, load_declarations
from cpt_repro.files import digest, read_json
from cpt_repro.planning.plan import Plan, Segment
from cpt_repro.records.receipts import (
    Evaluation,
    Receipt,
    corpus_path,
    evaluation_path,
    read_evaluation,
    read_fingerprint,
    read_receipt,
    receipt_path,
)

NOT_RUN, NO_COUNTERPART, FAILED = "not run", "no counterpart", "failed"


class Records:
    """What one paper's runs left at one scale."""

    def __init__(self, plan: Plan, paper: str, results: Path):
        self.plan, self.paper, self.results = plan, paper, Path(results)
        self.scale = plan.scale
        #: record -> SHA-256 of its content, without what was `measured` of speed
        self.digests: dict[str, str] = {}
        #: "receipt <id>" or "evaluation <id>", wanted and not there
        self.missing: set[str] = set()
        #: receipts of another identity than the plan's: drawn, and named
        self.stale: set[str] = set()
        #: runs and merges without counterpart -> why
        self.without: dict[str, str] = {}
        self._read: dict[Path, Any] = {}

    @cached_property
    def declared(self) -> Exhibits:
        """The paper's declarations."""
        return load_declarations(self.paper)

    def _one(self, path: Path, name: str, kind: str, reader: Any) -> Any:
        if path not in self._read:
            if path.is_file():
                self._read[path] = reader(path)
                told = read_json(path)
                told.pop("measured", None)
                self.digests[f"{kind} {name}"] = digest(told)
            else:
                self._read[path] = None
                self.missing.add(f"{kind} {name}")
        return self._read[path]

    def _all(self, name: str, kind: str, where: Any, reader: Any) -> list[Any]:
        if why := absent(self.plan, self.paper, name):
            self.without[name] = why
            return []
        ids = self.plan.ids(self.paper, name)
        found = [self._one(where(self.results, self.scale.name, i), i, kind, reader) for i in ids]
        return [record for record in found if record is not None]

    def receipts(self, name: str) -> list[Receipt]:
        """The run's receipts, one a seed."""
        found = self._all(name, "receipt", receipt_path, read_receipt)
        for receipt in found:
            planned = self.plan.segments.get(receipt.segment.id)
            if planned is None or planned.identity != receipt.identity:
                self.stale.add(f"receipt {receipt.segment.id}")
        return found

    def evaluations(self, name: str) -> list[Evaluation]:
        """The evaluations of a run or a merge, one a seed."""
        return self._all(name, "evaluation", evaluation_path, read_evaluation)

    def why(self, name: str) -> str:
        """The word that stands where a value is missing."""
        if absent(self.plan, self.paper, name):
            return NO_COUNTERPART
        places = [receipt_path(self.results, self.scale.name, i) for i in self.plan.ids(self.paper, name)]
        return FAILED if any(place.with_name("failure.json").is_file() for place in places) else NOT_RUN

    def segment(self, name: str) -> Segment | None:
        """The run as planned (first seed); of a merge, its task's."""
        merge = self.plan.papers[self.paper].merges.get(name)
        return next(iter(self.plan.find(self.paper, merge.task if merge else name)), None)

    def fingerprint(self, corpus: str) -> dict[str, Any] | None:
        """What was built of a corpus, or None."""
        return self._one(
            corpus_path(self.results, self.scale.name, corpus), corpus, "corpus", read_fingerprint
        )

    def corpus(self, corpus: str) -> str:
        """A corpus in words, as at this scale: upstream (english_upstream, for the Pile)."""
        told = self.declared.corpora[corpus]
        name = self.scale.corpora.get(corpus, corpus)
        return (
            told.stands_for if self.scale.name == "paper" else f"{told.role} ({name}, for {told.stands_for})"
        )
