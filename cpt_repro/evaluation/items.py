"""Items of tasks: what a model is asked, with its whole prompt; rows of the hub's data sets made into them.

Items are data, nothing is a template: what was asked can be read in one place and is the same wherever it is
scored. Every fault of a data set is a `UserError` that names the file.
"""

from __future__ import annotations

import json
import random
from collections import defaultdict
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self

from pydantic import Field, model_validator

from cpt_repro.declarations.benchmarks import STEM, Benchmark, Scoring
from cpt_repro.declarations.strict import Strict, parse
from cpt_repro.errors import UserError, briefly
from cpt_repro.models.hub import Repository
from cpt_repro.project import Project

#: Of the examples drawn at random; lm-eval's own.
FEWSHOT_SEED = 1234
Texts = Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(min_length=2)]


class Item(Strict):
    """One item of a task."""

    #: lm-eval's key -> the field that it names.
    KEYS: ClassVar[dict[str, str]]

    #: Of the row, or document and word, that it is from; and of the rows that stand before it, solved.
    id: str
    examples: tuple[str, ...] = ()

    def after(self, before: str, examples: tuple[str, ...]) -> Self:
        """The same with a text, made from these examples, before the question."""
        return self.model_copy(update={"context": before + self.context, "examples": examples})


class _OfChoices(Item):
    answer: int = Field(ge=0, strict=True)

    @model_validator(mode="after")
    def _right_choice(self) -> Item:
        if self.answer >= (count := len(getattr(self, self.KEYS["doc_to_choice"]))):
            raise ValueError(f"the answer {self.answer} is none of the {count} choices")
        return self


class Choices(_OfChoices):
    """Which of `choices` goes on from `context`?"""

    KEYS = {"doc_to_text": "context", "doc_to_choice": "choices", "doc_to_target": "answer"}

    #: That its text is from.
    corpus: str | None = None
    context: str
    choices: Texts
    #: 1 for every choice that is true.
    labels: tuple[Literal[0, 1], ...] | None = None

    @model_validator(mode="after")
    def _labelled(self) -> Choices:
        if self.labels is not None and (len(self.labels) != len(self.choices) or 1 not in self.labels):
            raise ValueError(f"the labels {self.labels} are not a 0 or 1 for each choice, with a 1")
        return self

    @property
    def solved(self) -> str:
        return f"{self.context} {self.choices[self.answer]}"


class Openings(_OfChoices):
    """After which of `contexts` is the continuation likeliest?"""

    KEYS = {"doc_to_text": "answer", "doc_to_choice": "contexts", "doc_to_target": "continuation"}

    contexts: Texts
    continuation: str

    def after(self, before: str, examples: tuple[str, ...]) -> Openings:
        contexts = tuple(before + one for one in self.contexts)
        return self.model_copy(update={"contexts": contexts, "examples": examples})

    @property
    def solved(self) -> str:
        return f"{self.contexts[self.answer]} {self.continuation}"


class Question(Item):
    """A text to be answered; any of `answers` is right."""

    KEYS = {"doc_to_text": "context", "doc_to_target": "answers"}

    context: str
    answers: Annotated[tuple[str, ...], Field(min_length=1)]

    @property
    def solved(self) -> str:
        return f"{self.context} {self.answers[0]}"


def kind_of(scoring: Scoring) -> type[Item]:
    """The kind of items that a task so scored has."""
    if scoring.output_type == "generate_until":
        return Question
    return Openings if scoring.choices_in_context else Choices


class Row(NamedTuple):
    """One row of a data set: `<file>#<number>`, what errors call it, and its columns."""

    id: str
    where: str
    columns: dict[str, Any]


class PublishedTask:
    """A benchmark's declaration applied to its data set, of the hub or a copy."""

    def __init__(self, project: Project, benchmark: Benchmark):
        self.benchmark = benchmark
        self.repository = Repository(project, "dataset", benchmark.dataset_path, benchmark.revision)
        self._do = f"Look at the data, or correct {project.benchmarks / f'{benchmark.task}.yaml'}."

    def items(self) -> list[Item]:
        """The items, in the order of the rows."""
        rows, pool, items = self._rows(self.benchmark.test_split), defaultdict(list), []
        for row in self._rows(self.benchmark.fewshot_split) if self.benchmark.num_fewshot else ():
            pool[self._of("group", row)].append(row)
        for row in rows:
            examples = self._examples(row, pool[self._of("group", row)])
            solved = (self._item(one).solved + self.benchmark.fewshot_delimiter for one in examples)
            before = "".join([self._of("description", row), *solved])
            items.append(self._item(row).after(before, tuple(example.id for example in examples)))
        return items

    def _rows(self, split: str) -> list[Row]:
        """The rows of a split that count, in the order of its files; none is a `UserError`."""
        rows = []
        for file in self.repository.files(self.benchmark.files[split]):
            (path,) = self.repository.fetch(file)
            for number, columns in enumerate(_read(path), start=1):
                row = Row(f"{file}#{number}", f"{path}, row {number}", columns)
                columns[STEM] = Path(file).name.split(".")[0]
                if self.benchmark.keep is None or self._of("keep", row):
                    rows.append(row)
        if not rows:
            raise UserError(f"the split '{split}' has no rows.", where=self.repository.where, do=self._do)
        return rows

    def _of(self, template: str, row: Row) -> Any:
        try:
            return self.benchmark.of(template, row.columns)
        except Exception as error:  # whatever an expression meets in a row
            fault = f"'{template}' of the benchmark {self.benchmark.task} does not fit a row ({error})."
            raise UserError(fault, where=row.where, do=self._do) from None

    def _examples(self, row: Row, pool: list[Row]) -> list[Row]:
        """A question's examples: never the question itself, drawn for each question by itself."""
        benchmark, others = self.benchmark, [other for other in pool if other.id != row.id]
        if len(others) < benchmark.num_fewshot:
            group = f" of the group '{self._of('group', row)}'" if benchmark.group else ""
            what = f"{benchmark.num_fewshot} examples are asked for, and there are {len(others)} rows{group}"
            raise UserError(f"{what} in '{benchmark.fewshot_split}'.", where=row.where, do=self._do)
        if benchmark.fewshot_sampler == "first_n":
            return others[: benchmark.num_fewshot]
        # Seeding by a string does not depend on PYTHONHASHSEED.
        rng = random.Random(f"{FEWSHOT_SEED}/{benchmark.task}/{row.id}")
        return rng.sample(others, benchmark.num_fewshot)

    def _item(self, row: Row) -> Item:
        """A row as an item, without what stands before it."""
        benchmark, text, target = self.benchmark, self._of("doc_to_text", row), self._of("doc_to_target", row)
        choices = self._of("doc_to_choice", row)
        if (kind := kind_of(benchmark)) is Question:
            content = {"context": text, "answers": [target] if isinstance(target, str) else target}
        elif kind is Openings:
            content = {"contexts": choices, "continuation": target, "answer": text}
        else:
            labels = self._of("labels", row)
            content = {"context": text, "choices": choices, "answer": target, "labels": labels}
        return parse(kind, {"id": row.id, **content}, row.where)


def _read(path: Path) -> list[dict[str, Any]]:
    import pyarrow
    from pyarrow import parquet

    try:
        if path.suffix == ".parquet":
            return parquet.ParquetFile(path).read().to_pylist()
        return [dict(json.loads(line)) for line in path.read_bytes().splitlines()]
    except (OSError, ValueError, TypeError, RecursionError, pyarrow.ArrowException) as error:
        fault = f"not a whole file of parquet or JSON lines ({briefly(error)})."
        raise UserError(fault, where=str(path), do="Fetch it again.") from None
