"""Receipts: small JSON files that runs and evaluations leave; all that exhibits are drawn from."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, Field, model_validator

from cpt_repro.declarations.strict import Name, Share, Strict, parse
from cpt_repro.errors import UserError
from cpt_repro.files import digest, read_json, write_json
from cpt_repro.planning.training import Training

VERSION = 2

#: Bounds far beyond anything measured, within which neither a mean nor a perplexity nor an axis overflows.
Nats = Annotated[float, Field(ge=0, le=300)]
Whole = Annotated[int, Field(ge=0, le=2**53)]


class FinalLoss(Strict):
    """Validation loss (nats per token) averaged over the closing evaluations."""

    loss: Nats
    evaluations: Whole = Field(ge=1)
    #: standard error over the closing evaluations (Ibrahim section 1.6 of the tables' captions)
    stderr: Nats
    #: standard error over validation sequences at the last evaluation: the noise of the validation set
    noise: Nats


class Losses(Strict):
    """What was measured on one corpus along a training, or of its kept weights."""

    #: digest of what decides the corpus' tokens, as the plan has it
    data: str
    #: fingerprint of the shards it was measured on
    fingerprint: str
    #: validation sequences at the start and in the closing evaluations
    sequences: Whole = Field(ge=1)
    #: the first so many of them in every evaluation of the curve; None: all
    along: Whole | None = Field(default=None, ge=1)
    #: entropy rate of a generated language in nats per token, where it is known
    entropy_floor: Nats | None = None
    #: [(iteration, validation loss in nats per token)]
    curve: tuple[tuple[Whole, Nats], ...] = Field(min_length=1)
    #: loss of all sequences before the first update; None: that of the curve
    start: Nats | None = None
    final: FinalLoss
    #: loss of each validation sequence at the last evaluation, to compare models sequence by sequence
    of_sequences: tuple[Nats, ...] = ()


class RunName(Strict):
    """What a run was called when it was trained; it decides nothing."""

    id: str
    paper: str
    name: str
    seed: int
    model: str


class Measured(Strict):
    """How fast it was: alone in a receipt it may differ between two runs of the same training."""

    seconds: float = Field(ge=0, le=1e12)
    tokens_per_second: float = 0
    validation_seconds: float = 0
    resumed_at: Whole = 0
    #: median of a step, and the share of time spent waiting for batches
    step_seconds: float | None = None
    loader_wait_share: float | None = None
    execution: dict[str, Any] = {}
    commit: str | None = None


class Receipt(Strict):
    """What a finished training leaves."""

    schema_version: Literal[2] = VERSION
    identity: str
    run: RunName
    training: Training
    #: SHA-256 of the weights file it started from, or over the tensors of a model from outside
    parent_weights: str | None
    #: corpus trained on -> fingerprint of its shards
    data: dict[str, str]
    losses: dict[str, Losses]
    #: [(iteration, learning rate of the next update)], as the optimizer was told
    learning_rate: tuple[tuple[Whole, Share], ...]
    #: [(iteration, mean training loss since the last point)]
    train_loss: tuple[tuple[Whole, float], ...]
    #: iteration -> SHA-256 of the weights file kept there
    checkpoints: dict[Whole, str]
    parameters: Whole
    code: dict[str, str]
    environment: dict[str, str]
    measured: Measured

    @model_validator(mode="after")
    def _of_its_training(self) -> Receipt:
        if min(self.training.iterations, self.training.tokens) <= 0:
            raise ValueError("its training has no length")
        if self.training.identity != self.identity:
            raise ValueError(f"'identity' is not that of 'training', which is {self.training.identity}")
        return self


class LaterLosses(Strict):
    """Losses measured on kept weights after the training: `losses.json` beside the receipt."""

    schema_version: Literal[2] = VERSION
    #: of the training
    identity: str
    losses: dict[str, Losses]
    environment: dict[str, str]


class Failure(Strict):
    """Why a training failed by itself: `failure.json` where its receipt would be."""

    identity: str
    why: str


class Score(Strict):
    """What one task gave."""

    metric: str
    value: Share
    stderr: Share
    documents: Whole
    truncated: Whole | None = None
    #: which documents were answered right: bits as hexadecimal digits, the first document first; None where
    #: an answer is more than right or wrong
    right: str | None = Field(default=None, pattern=r"^([0-9a-f]{2})+$")
    #: digest of all that decides the task
    declaration: str

    @property
    def answers(self) -> tuple[int, ...]:
        """1 for each document answered right, else 0, in the task's order; () where that is not known."""
        bits = "".join(f"{byte:08b}" for byte in bytes.fromhex(self.right or ""))
        return tuple(map(int, bits[: self.documents]))

    @staticmethod
    def packed(answers: Sequence[float]) -> str | None:
        """Answers as `right` holds them."""
        if not {*answers} <= {0, 1}:
            return None
        bits = "".join(str(int(answer)) for answer in answers)
        bits += "0" * (-len(bits) % 8)
        return bytes(int(bits[k : k + 8], 2) for k in range(0, len(bits), 8)).hex()


class SuiteScores(Strict):
    """What the tasks of one suite gave."""

    tasks: dict[Name, Score] = Field(min_length=1)

    @property
    def average(self) -> float:
        """Plain mean of the tasks, as in the papers (Ibrahim Tables 5-7, 10, 11)."""
        return math.fsum(score.value for score in self.tasks.values()) / len(self.tasks)

    @property
    def stderr(self) -> float:
        """Standard error of the average, the tasks' errors being independent: sqrt(sum e^2) / n."""
        return math.sqrt(math.fsum(score.stderr**2 for score in self.tasks.values())) / len(self.tasks)


class Evaluation(Strict):
    """What the benchmark suites say of one model: a run's final weights, or a merge."""

    schema_version: Literal[2] = VERSION
    #: of the weights
    identity: str
    id: str
    suites: dict[Name, SuiteScores]
    prompts: tuple[str, ...] = ()
    generations: tuple[str, ...] = ()
    suites_fingerprint: str
    environment: dict[str, str]

    @property
    def seed(self) -> int:
        return int(self.id.rpartition("seed-")[2])

    def has(self, suite: str, task: str, declaration: str) -> bool:
        """Whether a task was scored as it is declared."""
        scores = self.suites.get(suite)
        return bool(scores) and task in scores.tasks and scores.tasks[task].declaration == declaration

    def current(self, wanted: dict[str, dict[str, str]]) -> Evaluation:
        """The scores of `wanted`, {suite: {task: digest of its declaration}}, of suites that are whole."""
        suites = {
            suite: SuiteScores(tasks={task: self.suites[suite].tasks[task] for task in tasks})
            for suite, tasks in wanted.items()
            if all(self.has(suite, task, declaration) for task, declaration in tasks.items())
        }
        return self.model_copy(update={"suites": suites})


class Domain(Strict):
    """What was built of one domain in one split."""

    documents: Whole
    tokens: Whole
    sequences: Whole = Field(ge=1)
    text_bytes: Whole
    #: file below the domain's folder -> SHA-1
    shards: dict[str, str] = Field(min_length=1)


class Fingerprint(Strict):
    """What was built of a corpus (`fingerprint.json`), and the digest of all of that."""

    name: Name
    manifest: str
    tokenizer: str = Field(description="SHA-256 of tokenizer.json")
    sequence_length: Whole = Field(ge=1)
    splits: dict[Literal["train", "validation"], dict[Name, Domain]] = Field(min_length=2)
    shares: dict[Name, Share]
    entropy_floor: Nats | None
    empty_documents: dict[str, Whole]
    validation_documents: str = Field(description="SHA-256 of validation.jsonl")
    fingerprint: str

    @model_validator(mode="after")
    def _same_domains(self) -> Fingerprint:
        if any(set(domains) != set(self.shares) for domains in self.splits.values()):
            raise ValueError("'splits' and 'shares' must name the same domains")
        return self

    def validation_draw(self, n: int) -> list[tuple[str, int]]:
        """Which sequences a validation sample of `n` is made of: (domain, k), the k-th of those drawn of it.

        Every domain gives its share (largest remainder); the order is shuffled by a fixed seed, so that the
        first are a fair sample too. More than there is: `ValueError`.
        """
        available = {domain: built.sequences for domain, built in self.splits["validation"].items()}
        possible = sum(count for domain, count in available.items() if self.shares[domain])
        if n > possible:
            raise ValueError(f"there are {possible}")
        drawn = [(d, k) for d, quota in _quotas(self.shares, available, n).items() for k in range(quota)]
        rng = random.Random(0)
        by = [rng.random() for _ in drawn]
        return [drawn[index] for index in sorted(range(n), key=by.__getitem__)]


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


def read_fingerprint(path: Path) -> Fingerprint:
    """Reads a corpus' fingerprint or its record; a broken one, or one that was edited, is a `UserError`."""
    value = read_json(path)
    fingerprint = parse(Fingerprint, value, str(path))
    right = digest({key: entry for key, entry in value.items() if key != "fingerprint"})
    if right != fingerprint.fingerprint:
        written = fingerprint.fingerprint
        fault = f"the fingerprint does not match its contents: {written} is written, {right} is right."
        do = "Rebuild the corpus: `cpt-repro corpus NAME --scale SCALE --rebuild`."
        raise UserError(fault, where=str(path), do=do)
    return fingerprint


R = TypeVar("R", bound=BaseModel)


def read_record(model: type[R], path: Path) -> R:
    """Reads a receipt or evaluation; an unknown version or a broken file is a `UserError`."""
    raw = read_json(path)
    version = raw.get("schema_version") if isinstance(raw, dict) else None
    if version != VERSION:
        what = f"its schema_version is {version!r}; this program reads {VERSION}."
        do = "Use the version of cpt_repro that wrote it, or remove the file and run again."
        raise UserError(what, where=str(path), do=do)
    return parse(model, raw, str(path))


class _Identified(BaseModel):
    identity: str


def identity_in(path: Path) -> str | None:
    """The identity that a receipt or evaluation says it has, None where there is no file.

    What is broken is not taken for missing: errors as of `read_record`.
    """
    return read_record(_Identified, path).identity if path.exists() else None


def write_record(path: Path, record: BaseModel) -> None:
    """Writes a record, whole or not at all."""
    write_json(path, record.model_dump(mode="json"))
