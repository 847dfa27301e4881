"""Weights that a paper's authors published (`released.yaml`), by the run that they are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from cpt_repro.declarations.runs import RunName
from cpt_repro.declarations.strict import Strict, load, nearest
from cpt_repro.errors import UserError

if TYPE_CHECKING:
    from cpt_repro.declarations.study import Study

_REPOSITORY = r"^[\w-][\w.-]*/[\w-][\w.-]*$"


class Released(Strict):
    """One run's published weights, and what is known of them."""

    repository: str = Field(pattern=_REPOSITORY)
    #: A commit; None takes the default branch and pins it at first use.
    revision: str | None = Field(default=None, pattern=r"^[0-9a-f]{40}$")
    #: Whether the list of files was seen and has weights, was not seen, or was seen and has none.
    weights: Literal["seen", "named", "empty"]
    #: Another repository that should hold the same.
    also: str | None = Field(default=None, pattern=_REPOSITORY)
    note: str

    @property
    def model(self) -> str:
        """As `init_from` names it."""
        return f"{self.repository}@{self.revision}" if self.revision else self.repository


class _File(Strict):
    source: str
    models: dict[RunName, Released]


def load_released(study: Study) -> dict[str, Released]:
    """A paper's published weights by run, {} where it has no file; an undeclared run is a `UserError`."""
    path = study.path("released.yaml")
    models = load(_File, path).models if path.exists() else {}
    for run in models.keys() - study.paper.runs.keys():
        do = nearest(run, study.paper.runs)
        raise UserError(f"the run '{run}' is not declared.", where=str(path), do=do)
    return models
