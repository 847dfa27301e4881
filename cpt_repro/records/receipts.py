"""Receipts: the small JSON files that finished runs and evaluations leave; all that exhibits are drawn from."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, NotRequired

from pydantic import ConfigDict, Field, model_validator
from typing_extensions import TypedDict

from cpt_repro.declarations.strict import Name, Share, Strict, parse
from cpt_repro.errors import UserError
from cpt_repro.files import digest, read_json, write_json
from cpt_repro.planning.plan import Segment

SCHEMA_VERSION = 1


class FinalLoss(Strict):
    """Validation loss (nats per token) averaged over the closing evaluations."""

    loss: float
    evaluations: int
    #: standard error over the closing evaluations (Ibrahim section 1.6 of the tables' captions)
    stderr: float
    #: standard error over validation sequences at the last evaluation: the noise of the validation set
    noise: float


class Receipt(Strict):
    """What a finished training segment leaves. `measured` alone may differ between two runs of the same segment."""

    schema_version: Literal[1] = SCHEMA_VERSION
    identity: str
    segment: Segment
    parent_weights: str | None = Field(
        description="SHA-256 of the weights file it started from, or over the tensors of a model from outside"
    )
    data: dict[str, str] = Field(description="corpus -> fingerprint of its shards")
    #: corpus -> entropy rate of a generated language in nats per token, where it is known
    entropy_floor: dict[str, float | None]
    #: corpus -> [(iteration, validation loss in nats per token)]
    curves: dict[str, list[tuple[int, float]]]
    #: [(iteration, learning rate of the next update)], as the optimizer was told
    learning_rate: list[tuple[int, float]]
    #: [(iteration, mean training loss since the last point)]
    train_loss: list[tuple[int, float]]
    final: dict[str, FinalLoss]
    #: corpus -> loss of each validation sequence at the last evaluation, to compare models sequence by sequence
    sequence_losses: dict[str, tuple[float, ...]] = {}
    #: iteration -> SHA-256 of the weights file kept there
    checkpoints: dict[int, str]
    parameters: int
    code: dict[str, str]
    environment: dict[str, str]
    measured: dict[str, Any]

    @model_validator(mode="after")
    def _usable(self) -> Receipt:
        if min(self.segment.iterations, self.segment.tokens, self.segment.tokens_per_billion) <= 0:
            raise ValueError("its segment has no length")
        for name, told in (("curves", self.curves), ("final", self.final)):
            if set(told) != set(self.segment.validate_on):
                raise ValueError(f"'{name}' and 'segment.validate_on' must name the same corpora")
        if not all(self.curves.values()):
            raise ValueError("a curve in 'curves' has no points")
        return self

    def curve(self, corpus: str) -> list[tuple[float, float]]:
        """[(billions of the papers' tokens since this segment began, loss)]."""
        per_iteration = self.segment.tokens / self.segment.iterations / self.segment.tokens_per_billion
        return [(iteration * per_iteration, loss) for iteration, loss in self.curves[corpus]]


_TYPED = ConfigDict(extra="forbid", allow_inf_nan=False)


class Score(TypedDict):
    """What one task gave."""

    __pydantic_config__ = _TYPED
    metric: str
    value: Share
    stderr: float
    documents: int
    truncated: NotRequired[int]


class SuiteScores(TypedDict):
    """What the tasks of one suite gave, and their plain mean."""

    __pydantic_config__ = _TYPED
    tasks: dict[str, Score]
    average: Share
    stderr: float


class Evaluation(Strict):
    """What the benchmark suites say of one model: a run's final weights, or a merge."""

    schema_version: Literal[1] = SCHEMA_VERSION
    id: str
    identity: str
    suites: dict[str, SuiteScores]
    prompts: list[str] = []
    generations: list[str] = []
    suites_fingerprint: str
    environment: dict[str, str]


class Domain(Strict):
    """What was built of one domain in one split."""

    documents: int = Field(ge=0)
    tokens: int = Field(ge=0)
    sequences: int = Field(ge=1)
    text_bytes: int = Field(ge=0)
    #: file below the domain's folder -> SHA-1
    shards: dict[str, str] = Field(min_length=1)


class Fingerprint(Strict):
    """What was built of a corpus (`fingerprint.json`), and the digest of all of that."""

    name: Name
    manifest: str
    tokenizer: str = Field(description="SHA-256 of tokenizer.json")
    sequence_length: int = Field(ge=1)
    splits: dict[Literal["train", "validation"], dict[Name, Domain]] = Field(min_length=2)
    shares: dict[Name, Share]
    entropy_floor: float | None
    empty_documents: dict[str, int]
    validation_documents: str = Field(description="SHA-256 of validation.jsonl")
    fingerprint: str

    @model_validator(mode="after")
    def _same_domains(self) -> Fingerprint:
        if any(set(domains) != set(self.shares) for domains in self.splits.values()):
            raise ValueError("'splits' and 'shares' must name the same domains")
        return self


def read_fingerprint(path: Path) -> dict[str, Any]:
    """Reads a corpus' fingerprint or its record; a broken one, or one that was edited, is a `UserError`."""
    value = read_json(path)
    parse(Fingerprint, value, str(path))
    found = digest({key: entry for key, entry in value.items() if key != "fingerprint"})
    if found != value["fingerprint"]:
        fault = f"the fingerprint does not match its contents: {value['fingerprint']} is written, {found} is right."
        raise UserError(
            fault, where=str(path), do="Rebuild the corpus: `cpt-repro corpus NAME --scale SCALE --rebuild`."
        )
    return value


def receipt_path(results: Path, scale: str, segment_id: str) -> Path:
    """Where a segment's receipt lies."""
    return Path(results) / scale / "runs" / segment_id / "receipt.json"


def evaluation_path(results: Path, scale: str, model_id: str) -> Path:
    """Where a model's benchmark results lie."""
    return Path(results) / scale / "runs" / model_id / "evaluation.json"


def corpus_path(results: Path, scale: str, corpus: str) -> Path:
    """Where the record of a built corpus (a copy of its fingerprint) lies."""
    return Path(results) / scale / "corpora" / f"{corpus}.json"


def _read(model: type, path: Path) -> Any:
    raw = read_json(path)
    version = raw.get("schema_version") if isinstance(raw, dict) else None
    if version != SCHEMA_VERSION:
        raise UserError(
            f"its schema_version is {version!r}; this program reads {SCHEMA_VERSION}.",
            where=str(path),
            do="Use the version of cpt_repro that wrote it, or remove the file and run again.",
        )
    return parse(model, raw, str(path))


def read_receipt(path: Path) -> Receipt:
    """Reads a receipt; an unknown version or a broken file is a `UserError`."""
    return _read(Receipt, path)


def read_evaluation(path: Path) -> Evaluation:
    """Reads an evaluation; an unknown version or a broken file is a `UserError`."""
    return _read(Evaluation, path)


def write(path: Path, record: Receipt | Evaluation) -> None:
    """Writes a record, whole or not at all."""
    write_json(path, record.model_dump(mode="json"))


def is_current(path: Path, identity: str) -> bool:
    """Whether a receipt or evaluation of exactly this identity lies at `path`."""
    if not path.exists():
        return False
    raw = read_json(path)
    return isinstance(raw, dict) and (raw.get("schema_version"), raw.get("identity")) == (
        SCHEMA_VERSION,
        identity,
    )
