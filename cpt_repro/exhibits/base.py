"""What every kind of exhibit has: a declaration that is checked, what it needs, what it draws and says.

A kind is one file of this room with a subclass of `FigureKind` or `TableKind`, and one line in the catalogue.
Declarations are validated with their `Study` as context, so that names of nothing are refused.
"""

from __future__ import annotations

import math
import re
from abc import abstractmethod
from collections.abc import Iterable
from functools import cache, cached_property, partial
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple

from pydantic import AfterValidator, ValidationInfo, model_validator

from cpt_repro.declarations.published import Value
from cpt_repro.declarations.runs import Paper, Run
from cpt_repro.declarations.strict import Strict, nearest
from cpt_repro.declarations.study import Study
from cpt_repro.errors import UserError
from cpt_repro.exhibits import style
from cpt_repro.exhibits.agreement import Pair
from cpt_repro.exhibits.typeset import Measured, Table, count, over_seeds, rate_text
from cpt_repro.planning.plan import PlannedRun
from cpt_repro.records.lookup import Evidence, Records
from cpt_repro.records.uncertainty import Sample, scores

if TYPE_CHECKING:
    from cpt_repro.exhibits.catalogue import Catalogue, Exhibits

NOT_DIGITISED = "The paper's curves could not be digitised; no published values are drawn."
#: What stands behind ± and error bars.
INTERVAL = (
    "half-width of a 95 % interval over the validation documents and, with three seeds or more, over seeds "
    "(the scatter of fewer is not known)"
)


def unique(names: Iterable[str | None]) -> list[str]:
    """Names in order of appearance, each once."""
    return list(dict.fromkeys(name for name in names if name))


def check_known(name: str, known: Iterable[str], what: str) -> None:
    """Raises a `ValueError` with the nearest known name where `name` is none of them."""
    known = list(known)
    if name not in known:
        raise ValueError(f"the {what} '{name}' is not declared. {nearest(name, known)}")


def _run(name: str, info: ValidationInfo, merges: bool = False) -> str:
    try:
        if info.context:
            info.context.check_run(name, "", merges)
    except UserError as error:
        raise ValueError(f"{error.what} {error.do}") from None
    return name


def _corpus(name: str, info: ValidationInfo) -> str:
    if info.context:
        check_known(name, info.context.paper.corpora, "corpus")
    return name


#: A run of the paper or, as `<paper>/<run>`, of another; the same or a merge; a corpus of the paper.
RunRef = Annotated[str, AfterValidator(_run)]
RunOrMerge = Annotated[str, AfterValidator(partial(_run, merges=True))]
CorpusRef = Annotated[str, AfterValidator(_corpus)]


def declaration(study: Study, name: str) -> tuple[Paper, Run]:
    """The declaration of a run (of a merge, its task's) and the paper that it stands in."""
    paper, name = study.resolve(name)
    study = study.studies[paper]
    merge = study.paper.merges.get(name)
    return declaration(study, merge.task) if merge else (study.paper, study.paper.runs[name])


def warmup_end(run: PlannedRun) -> float:
    """Where a run's warm-up ends, in billions of the paper's tokens since it began; 0 without one."""
    share = getattr(run.training.schedule, "warmup_frac", 0)
    return run.position(share * run.training.schedule_iterations)


class Row(Strict):
    """A run or a merge, with the texts of its row."""

    run: RunRef | None = None
    merge: RunOrMerge | None = None
    #: how it is called, where `names` of the exhibits is not it
    name: str | None = None
    #: the new data; without it, the first new corpus that the run is validated on
    new: CorpusRef | None = None
    cells: dict[str, str] = {}

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        return {"run": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _one(self) -> Row:
        if (self.run is None) == (self.merge is None):
            raise ValueError("a row needs 'run' or 'merge', and not both")
        return self

    @property
    def model(self) -> str:
        """The run or merge."""
        return self.run or self.merge

    def new_corpus(self, study: Study) -> str | None:
        """The new data that it is about."""
        paper, run = declaration(study, self.model)
        return self.new or next((c for c in run.validate_on if paper.corpora[c].role == "new"), None)


class View(Evidence):
    """One exhibit with the records behind it, as its kind sees them."""

    def __init__(self, catalogue: Catalogue, records: Records, paper: str, key: str):
        super().__init__(records, paper)
        self.key, self.exhibit = key, catalogue.find(paper, key)
        self.declared: Exhibits = catalogue.declared(paper)
        self.counterparts = catalogue.counterparts(paper)
        #: whether values of this scale compare with the published ones as they are
        self.full_size = self.scale.full_size
        self.runs = cache(super().runs)

    @cached_property
    def seed_counts(self) -> list[int]:
        """How many seeds the runs and models shown have, each number once."""
        shown = [*self.exhibit.runs, *self.exhibit.evaluations]
        return sorted({len(self.plan.ids(self.paper, name)) for name in shown} - {0})

    @property
    def several_seeds(self) -> bool:
        """Whether anything shown has more than one seed."""
        return max(self.seed_counts, default=0) > 1

    @property
    def common_seeds(self) -> str:
        """Over which seeds means are, in words."""
        return "the seeds that all runs of a panel have" if len(self.seed_counts) > 1 else "seeds"

    def loss(self, run: str, *corpora: str) -> Measured | None:
        """A run's final loss on a corpus, or the plain mean over several."""
        n, samples = len(corpora), {}
        for one in self.runs(run):
            if {*corpora} <= set(one.final):
                finals = [one.final[corpus] for corpus in corpora]
                loss = math.fsum(final.loss for final in finals) / n
                error = math.hypot(*(final.stderr for final in finals)) / n
                samples[one.seed] = Sample(loss, error, losses=dict.fromkeys(corpora, one))
        return over_seeds(samples, 3) if samples else None

    def loss_at(self, run: str, corpus: str, most: float) -> tuple[float, Measured] | None:
        """(where, loss) of a run's last point up to `most`, in billions of the paper's tokens since it began.

        Only points that all its seeds have count; None where there is none.
        """
        curves = {one: dict(one.curve(corpus)) for one in self.runs(run)}
        shared = set.intersection(*map(set, curves.values())) if curves else ()
        # Ends of digitised curves are read to about a hundredth.
        x = max((x for x in shared if x <= 1.01 * most), default=None)
        if x is None:
            return None
        if all(x == max(points) for points in curves.values()) and (loss := self.loss(run, corpus)):
            return x, loss
        read = {one.seed: Sample(curves[one][x], losses={corpus: one}, along=True) for one in curves}
        return x, over_seeds(read, 3)

    def score(self, model: str, suite: str, task: str | None = None) -> Measured | None:
        """A run's or merge's value of a task, or average of a suite, in percent."""
        samples = scores(self.evaluations(model), suite, task)
        return over_seeds(samples, 2) if samples else None

    def size(self, name: str) -> str:
        """How a run's paper calls its model, and how large it is here."""
        paper, run = declaration(self.study, name)
        return self.here(paper.models[run.model])

    def full_name(self, name: str) -> str:
        """`<paper>/<name>` of a run or merge as this paper writes it."""
        return "/".join(self.study.resolve(name))

    def called(self, row: Row) -> str:
        """What a row is called."""
        return row.name or self.declared.names.get(row.run, row.model)

    @cached_property
    def _sizes(self) -> dict[str, str]:
        """The paper's names of its models -> with the size here: 64k (for 405M)."""
        names, sizes = self.study.paper.models, {}
        for run in self.plan.runs.values():
            if run.paper == self.paper and (name := names.get(run.model_name)):
                sizes.setdefault(name, f"{count(run.training.parameters)} (for {name})")
        return sizes

    def here(self, text: str, run: str | None = None) -> str:
        """A label with what was trained at this scale before what it stands for.

        Sizes of models, such as 64k (for 405M), and, of a run, learning rates, 3e-3 (3e-4), and the iteration
        of what it starts from, iter 21 (10000).
        """
        if self.full_size:
            return text
        text = re.sub(r"\b\d+[MB]\b(?! tokens)", lambda match: self._sizes.get(match[0], match[0]), text)
        planned = self.planned(run) if run else None
        if planned is None:
            return text
        if planned.parent:
            text = re.sub(r"\biter (\d+)\b", rf"iter {planned.parent_iteration} (\1)", text)
        factor = self.scale.models[planned.model_name].eta_factor
        return re.sub(
            r"\b\d(\.\d+)?e-\d+\b", lambda match: f"{rate_text(float(match[0]) * factor)} ({match[0]})", text
        )

    def published(self, column: str | None, rows: int) -> list[Value | None]:
        """The values of a column of the exhibit's published table, one a row; None where there is none."""
        table = self.study.published.tables.get(self.key) if column else None
        return [table.cell(self.key, number, column) if table else None for number in range(rows)]


class Result(NamedTuple):
    """One value of an exhibit, published and ours; None where there is none."""

    #: its place in the exhibit from 1, and what it is called there
    line: int
    row: str
    column: str
    published: Value | None
    ours: Measured | None
    #: the run or merge that it is of, if it is of one
    run: str | None
    #: which of its records tell it
    record: Literal["receipt", "evaluation", "corpus"] = "receipt"
    #: of those with whose published and reproduced values its own compare; None for inputs
    group: str | None = None


class Kind(Strict):
    """Base of all kinds: what is shown, in order of appearance, and what is said of it."""

    #: the first word of its key; whether it depends on a scale
    makes: ClassVar[str]
    scaled: ClassVar[bool] = True
    #: whether its runs are drawn with the looks that `styles` gives them
    styled: ClassVar[bool] = True
    title: str
    see: str

    #: runs whose receipts are shown
    runs: ClassVar[list[str]] = []
    #: runs and merges whose suites or generations are shown
    evaluations: ClassVar[list[str]] = []
    #: corpora whose building is shown
    corpora: ClassVar[list[str]] = []
    #: suites whose scores are shown
    suites: ClassVar[list[str]] = []
    #: columns of its published table, and how many rows that must have
    published_table: ClassVar[tuple[list[str], int]] = ([], 0)

    def notes(self, view: View) -> list[str]:
        """Sentences on what its values are."""
        return []

    def results(self, view: View) -> list[Result]:
        """Every number that it shows, of curves their ends; those of one line and column are one."""
        return []

    def pairs(self, view: View) -> list[Pair]:
        """Results that have both values, in groups that compare; a run in two rows counts once."""
        out: dict[tuple[str, str | None], Pair] = {}
        for one in self.results(view):
            if one.group and one.published and one.ours:
                pair = Pair(one.group, float(one.published.value), one.ours.value)
                out.setdefault((one.group, one.run), pair)
        return list(out.values())


class FigureKind(Kind):
    """Base of what gives a figure."""

    makes: ClassVar[str] = "figure"

    @abstractmethod
    def draw(self, view: View) -> style.Figure:
        """The figure; what is missing is drawn as missing."""


class TableKind(Kind):
    """Base of what gives a table."""

    makes: ClassVar[str] = "table"

    @abstractmethod
    def table(self, view: View) -> Table:
        """The table; what is missing is told in its cell."""
