"""A study: all that one paper declares, each part read when it is asked for, and checked by the others."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, Field

from cpt_repro.declarations.published import (
    Digitised,
    Discrepancies,
    Discrepancy,
    Published,
    Released,
    ReleasedWeights,
    Variant,
)
from cpt_repro.declarations.runs import Paper, load_paper
from cpt_repro.declarations.strict import T, load, nearest
from cpt_repro.errors import UserError
from cpt_repro.project import Project

#: Billions of tokens since a run began at which every run of a paper is evaluated, beside those of the scale.
WantedPoints = Annotated[tuple[Annotated[float, Field(ge=0, le=1e9)], ...], Field(max_length=1000)]
#: suite -> task as printed -> how many items it has, for the noise of published scores
Items = dict[str, dict[str, Annotated[int, Field(ge=1, le=2**31)]]]


class _Asked(BaseModel):
    """What files of claims and exhibits say to others; the rest of them is read where it belongs."""

    points: WantedPoints = ()
    documents: Items = {}


class Study:
    """One paper's declarations; `studies` are all papers', whose runs it may name."""

    def __init__(self, studies: Studies, name: str):
        self.studies, self.name = studies, name
        self.project: Project = studies.project

    @cached_property
    def _folder(self) -> Path:
        return self.project.papers / self.name

    def path(self, file: str) -> Path:
        """Where a file of the paper's declarations lies."""
        return self._folder / file

    def _load(self, file: str, empty: T) -> T:
        """A file's content, of the type of `empty`, which stands where there is no file."""
        path = self.path(file)
        return load(type(empty), path) if path.exists() else empty

    @cached_property
    def discrepancies(self) -> tuple[Discrepancy, ...]:
        """Where its sources contradict each other; none where it has no file."""
        return self._load("discrepancies.yaml", Discrepancies(discrepancies=())).discrepancies

    @property
    def variants(self) -> dict[str, Variant]:
        """The other readings of its discrepancies, by `<paper>/<discrepancy>/<variant>`."""
        found = ((f"{self.name}/{one.id}/", one.variants) for one in self.discrepancies)
        return {prefix + name: variant for prefix, variants in found for name, variant in variants.items()}

    @cached_property
    def paper(self) -> Paper:
        """Its runs and merges, with the studies' variants in force."""
        on = {name: variant for name, variant in self.variants.items() if name in self.studies.variants}
        return load_paper(self.project, self.name, on)

    @cached_property
    def _asked(self) -> tuple[_Asked, ...]:
        return tuple(self._load(file, _Asked()) for file in ("claims.yaml", "exhibits.yaml"))

    @property
    def points(self) -> tuple[float, ...]:
        """Billions of tokens at which claims and exhibits ask that every run be evaluated, in order."""
        return tuple(sorted({point for asked in self._asked for point in asked.points}))

    @property
    def documents(self) -> Items:
        """How many items the tasks of the published suites have, as far as that is declared."""
        return {suite: items for asked in self._asked for suite, items in asked.documents.items()}

    @cached_property
    def published(self) -> Published:
        """Its published tables and facts; empty where it has no file."""
        return self._load("published.yaml", Published(source=""))

    @cached_property
    def digitised(self) -> Digitised:
        """Its digitised curves; empty where it has no file."""
        return self._load("digitised.json", Digitised(source="", tolerance=0, panels={}))

    @cached_property
    def released(self) -> dict[str, Released]:
        """Weights that its authors published, by run; {} where it has no file."""
        models = self._load("released.yaml", ReleasedWeights(source="", models={})).models
        for run in models.keys() - self.paper.runs.keys():
            where, do = str(self.path("released.yaml")), nearest(run, self.paper.runs)
            raise UserError(f"the run '{run}' is not declared.", where=where, do=do)
        return models

    def _home(self, name: str) -> tuple[Study, str]:
        """The study that a name points to, as far as its beginning tells, and the rest of it."""
        paper, _, rest = name.partition("/")
        own = name in self.paper.runs or name in self.paper.merges or paper == self.name
        return (self, name) if own or paper not in self.studies.names else (self.studies[paper], rest)

    def resolve(self, name: str) -> tuple[str, str]:
        """(paper, run or merge) of a name as this paper writes it; an unknown one is a `KeyError`."""
        study, run = self._home(name)
        if run in study.paper.runs or run in study.paper.merges:
            return study.name, run
        raise KeyError(name)

    def check_run(self, name: str, where: str, merges: bool = False) -> None:
        """Raises a `UserError` where `name` is no run (or merge) of this paper or of another one."""
        study, run = self._home(name)
        if run in study.paper.runs or (merges and run in study.paper.merges):
            return
        known = [*self.paper.runs, *(self.paper.merges if merges else ())]
        known += [f"{study.name}/{other}" for other in study.paper.runs if study is not self]
        do = nearest(name, known)
        what = f"the {'run or merge' if merges else 'run'} '{name}' is not declared."
        raise UserError(what, where=where, do=do if len(do) < 200 else "Declare it, or use a declared one.")


class Studies:
    """The studies of a project by paper, read when asked for; `variants`: other readings in force."""

    def __init__(self, project: Project, variants: tuple[str, ...] = (), where: str = "variants"):
        self.project, self.variants = project, variants
        self.names = sorted(path.parent.name for path in project.papers.glob("*/runs.yaml"))
        self._studies: dict[str, Study] = {}
        known = [variant for name in (self.names if variants else ()) for variant in self[name].variants]
        for variant in variants:
            if variant not in known:
                what = f"the variant '{variant}' is unknown."
                raise UserError(what, where=where, do=nearest(variant, known))

    def __getitem__(self, name: str) -> Study:
        """The study of a paper; an unknown one is a `UserError`."""
        if name not in self.names:
            where = str(self.project.papers)
            raise UserError(f"the paper '{name}' is unknown.", where=where, do=nearest(name, self.names))
        return self._studies.setdefault(name, Study(self, name))
