"""A training: what decides weights, and nothing else. Its digest is its identity."""

from __future__ import annotations

from functools import cached_property
from typing import Literal

from pydantic import Field

from cpt_repro.declarations.scale import Size
from cpt_repro.declarations.schedules import Schedule
from cpt_repro.declarations.strict import Strict
from cpt_repro.files import digest
from cpt_repro.models.architecture import architecture
from cpt_repro.planning.mixture import Mixture

#: Raised when the meaning of a training changes in code, so that older weights are not taken for it.
VERSION = 2


class Start(Strict):
    """The training that this one goes on from, by its identity, and what it takes over beside the weights."""

    parent: str
    iteration: int = Field(ge=0)
    keep: tuple[Literal["optimizer", "data"], ...] = ()


class External(Strict):
    """A model from outside to start from, and what it saw where that is declared."""

    #: `<owner>/<name>@<revision>` or the path of a folder: where it is found.
    model: str
    #: What it is (see `models.outside.outside_identity`); a path is none of that.
    weights: str
    mixture: Mixture = ()
    tokens: int = Field(default=0, ge=0)


class Training(Strict):
    """Resolved: no name, no path, no measurement is in it. What has its default value does not count, so
    that a later field with a default changes no identity."""

    model: Size
    #: Rows of the embedding table.
    vocabulary: int
    sequence_length: int
    batch_sequences: int
    #: Of the initialisation and the order of samples.
    seed: int
    precision: Literal["fp32", "amp_bf16", "amp_fp16"] = "fp32"
    #: Intra-op threads: bits depend on their number.
    threads: int = 1
    start: Start | None = None
    external: External | None = None
    mixture: Mixture
    #: Batches of the mixture already read (above 0 only where the data position is kept).
    batch_offset: int = 0
    schedule: Schedule
    #: The length that the schedule is fitted to; a training may stop before.
    schedule_iterations: int
    iterations: int
    #: Corpus -> digest of what decides its tokens.
    data: dict[str, str]

    @property
    def parameters(self) -> int:
        return architecture(self.model.architecture).parameters(self.model, self.vocabulary)

    @cached_property
    def identity(self) -> str:
        """SHA-256 of everything that decides the weights."""
        content = self.model_dump(mode="json", exclude_defaults=True, exclude={"external": {"model"}})
        content["schedule"]["kind"] = self.schedule.kind
        return digest({"version": VERSION, **content})

    @property
    def tokens(self) -> int:
        return self.iterations * self.batch_sequences * self.sequence_length
