"""Published benchmarks (`configs/benchmarks/<name>.yaml`): data of the hub turned into items that lm-eval scores.

Declarations use lm-eval's keys and templates. What lm-eval lacks, or leaves to code, is said in them too: the pinned
revision and the files of each split, which rows count, and how examples are drawn. An item holds its whole prompt,
examples included, so that what was asked can be read in one place and is the same wherever it is scored. Metrics and
shots are those of Ibrahim 2024, section 5.4 and the captions of Tables 5-7, 10 and 11.
"""

from __future__ import annotations

import json
import random
import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import cache, cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import jinja2
import jinja2.meta
from pydantic import Field, model_validator

from cpt_repro.declarations.scale import Published, Scale
from cpt_repro.declarations.strict import Count, Name, Strict, load
from cpt_repro.errors import UserError
from cpt_repro.files import digest
from cpt_repro.models.hub import Repository
from cpt_repro.project import BENCHMARKS

#: Of the examples drawn at random; lm-eval's own.
FEWSHOT_SEED = 1234
#: What templates see beside a row's columns: the name, without its ending, of the file that the row is from.
STEM = "_stem"

_ONE_EXPRESSION = re.compile(r"\s*\{\{(.*)\}\}\s*", re.DOTALL)
_JINJA = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
_JINJA.filters["regex_replace"] = lambda text, pattern, new: re.sub(pattern, new, text)
_JINJA.filters["regex_findall"] = lambda text, pattern: re.findall(pattern, text)

Row = dict[str, Any]
Value = Callable[[Row], Any]


def _text(template: str) -> Value:
    return _JINJA.from_string(template).render


def _inner(template: str) -> str:
    """The expression in `{{ one expression }}`, or the column that is named."""
    found = _ONE_EXPRESSION.fullmatch(template)
    return found[1] if found else template


def _value(template: str | int | tuple[str, ...]) -> Value:
    """What a template stands for: itself, if it is a number or a list; else the value of its expression."""
    if not isinstance(template, str):
        return lambda row: list(template) if isinstance(template, tuple) else template
    expression = _JINJA.compile_expression(_inner(template), undefined_to_none=False)

    def of(row: Row) -> Any:
        found = expression(row)
        if isinstance(found, jinja2.Undefined):
            raise jinja2.UndefinedError(found._undefined_message)
        return found

    return of


class Generation(Strict):
    """How an answer is generated: greedily, until one of `until` or `max_gen_toks` tokens."""

    until: tuple[str, ...] = Field(min_length=1)
    max_gen_toks: Count
    do_sample: Literal[False] = False
    temperature: Literal[0] = 0


class Benchmark(Strict):
    """One declaration. Templates are jinja over the columns of a row, as in lm-eval."""

    task: Name
    about: str
    #: What of the data's layout was looked up, and what is assumed.
    note: str
    #: `<owner>/<name>` of a data set on the hub.
    dataset_path: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+/[A-Za-z0-9_.-]+$")]
    #: A commit; None: the one of the first use, which the lock file keeps.
    revision: str | None = Field(pattern=r"^[0-9a-f]{40}$")
    gating: str = ""
    #: Split -> pattern of its files (parquet, or JSON lines).
    files: dict[Name, str] = Field(min_length=1)
    test_split: Name
    #: Rows for which this is false are left out.
    keep: str | None = None
    #: Examples come from rows for which this is the same.
    group: str | None = None
    output_type: Literal["multiple_choice", "generate_until"]
    description: str = ""
    doc_to_text: str
    doc_to_choice: str | tuple[str, ...] | None = None
    doc_to_target: str | int
    #: The choice stands within the text: `doc_to_text` is the right choice's index, `doc_to_choice` the openings,
    #: `doc_to_target` what follows all of them and is scored.
    choices_in_context: bool = False
    #: Of every choice, 1 if it is true (metric mc2).
    labels: str | None = None
    target_delimiter: str = " "
    fewshot_delimiter: str = "\n\n"
    num_fewshot: int = Field(default=0, ge=0, le=100)
    fewshot_split: Name | None = None
    fewshot_sampler: Literal["random", "first_n"] = "random"
    generation_kwargs: Generation | None = None
    metric: Literal["acc", "acc_norm", "mc2", "exact_match"]
    #: Options of lm-eval's exact_match.
    metric_options: dict[
        Literal["ignore_case", "ignore_punctuation", "regexes_to_ignore"], bool | tuple[str, ...]
    ] = {}

    @model_validator(mode="after")
    def _consistent(self) -> Benchmark:
        generated = self.output_type == "generate_until"
        if generated != (self.metric == "exact_match") or generated != (self.generation_kwargs is not None):
            raise ValueError("generate_until, the metric exact_match and 'generation_kwargs' go together")
        if generated == (self.doc_to_choice is not None):
            raise ValueError("'doc_to_choice' belongs to multiple_choice, and is needed there")
        if (self.metric == "mc2") != (self.labels is not None):
            raise ValueError("'labels' belong to the metric mc2")
        for split in (self.test_split, self.fewshot_split):
            if split is not None and split not in self.files:
                raise ValueError(f"'files' lack the split {split}")
        if self.num_fewshot and self.fewshot_split is None:
            raise ValueError("examples need a 'fewshot_split'")
        try:
            _ = self.columns, self.templates
        except jinja2.TemplateSyntaxError as error:
            raise ValueError(f"a template is wrong: {error}") from None
        return self

    @property
    def digest(self) -> str:
        """SHA-256 of all that decides the items and the score; prose does not."""
        return digest(self.model_dump(mode="json", exclude={"about", "note", "gating"}))

    @cached_property
    def _declared(self) -> tuple[dict[str, str], dict[str, Any]]:
        """(templates of texts, templates of values)."""
        texts = {"description": self.description, "doc_to_text": self.doc_to_text}
        names = ("keep", "group", "labels", "doc_to_choice", "doc_to_target")
        values = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        if self.choices_in_context:
            values["doc_to_text"] = texts.pop("doc_to_text")
        return texts, values

    @cached_property
    def templates(self) -> dict[str, Value]:
        """The templates that are declared, as functions of a row."""
        texts, values = self._declared
        return {name: _text(t) for name, t in texts.items()} | {name: _value(t) for name, t in values.items()}

    @cached_property
    def columns(self) -> set[str]:
        """Columns that the templates use."""
        texts, values = self._declared
        expressions = ["{{" + _inner(t) + "}}" for t in values.values() if isinstance(t, str)]
        trees = map(_JINJA.parse, [*texts.values(), *expressions])
        return set().union(*map(jinja2.meta.find_undeclared_variables, trees)) - {STEM}

    def lm_eval_task(self, name: str, file: str) -> dict[str, Any]:
        """lm-eval's declaration of the task `name`, whose items (`items_of`) lie in `file`."""
        config = {
            "task": name,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": file}},
            "test_split": "test",
            "output_type": self.output_type,
            "target_delimiter": self.target_delimiter,
            "num_fewshot": 0,  # the examples are in the items
            "metric_list": [{"metric": self.metric, "aggregation": "mean", "higher_is_better": True}],
            "metadata": {"version": 1},
        }
        if self.choices_in_context:
            config |= {"doc_to_text": "answer", "doc_to_choice": "contexts", "doc_to_target": "continuation"}
        elif self.output_type == "multiple_choice":
            config |= {"doc_to_text": "context", "doc_to_choice": "choices", "doc_to_target": "answer"}
        else:
            config |= {"doc_to_text": "context", "doc_to_target": "answers"}
            told = self.model_dump(mode="json")
            config["metric_list"][0] |= told["metric_options"]
            config["generation_kwargs"] = told["generation_kwargs"]
            filters = [{"function": "remove_whitespace"}, {"function": "take_first"}]
            config["filter_list"] = [{"name": "none", "filter": filters}]
        return config


@cache
def _read(path: Path) -> Benchmark:
    return load(Benchmark, path)


def load_benchmark(name: str) -> Benchmark:
    """Reads `configs/benchmarks/<name>.yaml`; any fault is a `UserError` naming file and key."""
    path = BENCHMARKS / f"{name}.yaml"
    benchmark = _read(path)
    if benchmark.task != name:
        raise UserError(
            f"the key 'task' says '{benchmark.task}'.", where=str(path), do="Make it the file's name."
        )
    return benchmark


def metric_of(task: Published) -> str:
    """Name of the metric that a published task is scored by."""
    return load_benchmark(task.benchmark).metric


def declared_suites(scale: Scale) -> dict[str, Any]:
    """A scale's suites as data, published benchmarks with the digest of their declaration: what scores depend on."""
    told = {name: suite.model_dump(mode="json") for name, suite in scale.suites.items()}
    for name, suite in scale.suites.items():
        for task_name, task in suite.tasks.items():
            if task.kind == "published":
                told[name]["tasks"][task_name]["declaration"] = load_benchmark(task.benchmark).digest
    return told


class _Split:
    """The rows of one split, in the order of its files."""

    def __init__(self, benchmark: Benchmark, repository: Repository, split: str):
        self.benchmark, self.ids, self.rows = benchmark, [], []
        for file in repository.files(benchmark.files[split]):
            path = repository.fetch(file)
            for number, row in enumerate(_rows(path, benchmark.columns), start=1):
                row[STEM] = Path(file).name.split(".")[0]
                if "keep" not in benchmark.templates or self._of(path, number, row, "keep"):
                    self.ids.append(f"{file}#{number}")
                    self.rows.append((path, number, row))
        if not self.rows:
            fault = f"the split '{split}' of {benchmark.dataset_path} has no rows."
            raise UserError(fault, where=str(repository.copy or repository.name), do="Look at the data.")
        self.groups: dict[Any, list[int]] = defaultdict(list)
        for place in range(len(self.rows)):
            self.groups[self.of(place, "group") if "group" in benchmark.templates else None].append(place)

    def _of(self, path: Path, number: int, row: Row, name: str) -> Any:
        try:
            return self.benchmark.templates[name](row)
        except Exception as error:  # whatever an expression meets in a row
            fault = f"'{name}' of the benchmark {self.benchmark.task} does not fit a row ({error})."
            do = f"Look at the row, or correct configs/benchmarks/{self.benchmark.task}.yaml."
            raise UserError(fault, where=f"{path}, row {number}", do=do) from None

    def of(self, place: int, name: str) -> Any:
        """What the template `name` gives for a row; a row it does not fit is a `UserError`."""
        return self._of(*self.rows[place], name)

    def wrong(self, place: int, what: str) -> UserError:
        """A row that is no item."""
        path, number, _ = self.rows[place]
        return UserError(
            f"{what}.", where=f"{path}, row {number}", do="Look at the data, or declare what to 'keep'."
        )


def _rows(path: Path, columns: set[str]) -> Iterator[Row]:
    """Rows of a parquet file or of JSON lines, `columns` alone; a missing one is a `UserError` naming it."""

    def checked(there: Any, where: str) -> None:
        for column in sorted(columns - set(there)):
            do = f"It has: {', '.join(sorted(there))}. Correct the declaration, or the copy."
            raise UserError(f"the column '{column}' is missing.", where=where, do=do)

    if path.suffix == ".parquet":
        import pyarrow
        from pyarrow import parquet

        try:
            checked(parquet.read_schema(path).names, str(path))
            yield from parquet.read_table(path, columns=sorted(columns)).to_pylist()
        except (OSError, pyarrow.ArrowException) as error:
            fault = f"not a whole parquet file ({' '.join(str(error).split())[:200]})."
            raise UserError(fault, where=str(path), do="Fetch it again.") from None
    elif path.suffix in (".jsonl", ".json"):
        with open(path, encoding="utf-8") as stream:
            for number, line in enumerate(stream, start=1):
                where = f"{path}, line {number}"
                try:
                    row = json.loads(line)
                except ValueError as error:
                    raise UserError(
                        f"not a line of JSON ({error}).", where=where, do="Fetch it again."
                    ) from None
                checked(row if isinstance(row, dict) else (), where)
                yield {column: row[column] for column in columns}
    else:
        do = "Name parquet files or JSON lines in the declaration."
        raise UserError(f"files of the kind '{path.suffix}' cannot be read.", where=str(path), do=do)


def items_of(task: Published, lock: Path | None = None) -> tuple[Benchmark, list[Row], dict[str, Any]]:
    """(declaration, items, where they are from) of a published task, from the hub or a copy of it.

    An item of multiple choice is {"id", "context", "choices", "answer"}, with "labels" for mc2; where choices stand in
    the text {"id", "contexts", "continuation", "answer"}; of generated answers {"id", "context", "answers"}. "examples"
    names the rows that stand before the question. Every fault of the data is a `UserError` that names the file.
    """
    benchmark = load_benchmark(task.benchmark)
    shots = benchmark.num_fewshot if task.num_fewshot is None else task.num_fewshot
    declared = str(BENCHMARKS / f"{task.benchmark}.yaml")
    if shots and benchmark.fewshot_split is None:
        raise UserError(
            f"{shots} examples are asked for, and no 'fewshot_split'.", where=declared, do="Declare one."
        )
    repository = Repository("dataset", benchmark.dataset_path, benchmark.revision, benchmark.gating, lock)
    test = _Split(benchmark, repository, benchmark.test_split)
    pool = _Split(benchmark, repository, benchmark.fewshot_split) if shots else None
    items = []
    for place, name in enumerate(test.ids):
        chosen = _examples(benchmark, test, place, pool, shots) if pool else []
        before = test.of(place, "description") + "".join(_solved(pool, example) for example in chosen)
        item = {"id": name, **_asked(test, place, before)}
        if chosen:
            item["examples"] = [pool.ids[example] for example in chosen]
        items.append(item)
    source = {"dataset": benchmark.dataset_path, "commit": repository.commit, "num_fewshot": shots}
    return benchmark, items, source


def _examples(benchmark: Benchmark, test: _Split, place: int, pool: _Split, shots: int) -> list[int]:
    """Places in the pool of a question's examples: never the question itself, drawn for each question by itself."""
    group = test.of(place, "group") if benchmark.group else None
    own = test.ids[place]
    places = [other for other in pool.groups.get(group, []) if pool.ids[other] != own]
    if len(places) < shots:
        said = f" of the group '{group}'" if benchmark.group else ""
        what = f"{shots} examples are asked for, and the split '{benchmark.fewshot_split}' has {len(places)} rows{said}"
        raise test.wrong(place, what)
    if benchmark.fewshot_sampler == "first_n":
        return places[:shots]
    # Seeding by a string does not depend on PYTHONHASHSEED.
    return random.Random(f"{FEWSHOT_SEED}/{benchmark.task}/{own}").sample(places, shots)


def _choices(split: _Split, place: int) -> tuple[list[str], int]:
    """The choices and the index of the right one."""
    benchmark = split.benchmark
    choices = split.of(place, "doc_to_choice")
    answer = split.of(place, "doc_to_text" if benchmark.choices_in_context else "doc_to_target")
    if (
        not isinstance(choices, list)
        or len(choices) < 2
        or not all(isinstance(c, str) and c for c in choices)
    ):
        raise split.wrong(place, f"the choices are no list of texts: {choices!r:.200}")
    if not isinstance(answer, int) or not 0 <= answer < len(choices):
        raise split.wrong(place, f"the answer {answer!r} is none of the {len(choices)} choices")
    return choices, int(answer)


def _answers(split: _Split, place: int) -> list[str]:
    """The texts that count as right."""
    found = split.of(place, "doc_to_target")
    answers = [found] if isinstance(found, str) else found
    if not isinstance(answers, list) or not answers or not all(isinstance(a, str) for a in answers):
        raise split.wrong(place, f"the answers are no list of texts: {found!r:.200}")
    return answers


def _solved(split: _Split, place: int) -> str:
    """A question with its answer, as an example."""
    benchmark = split.benchmark
    if benchmark.choices_in_context:
        choices, answer = _choices(split, place)
        text, target = choices[answer], split.of(place, "doc_to_target")
    elif benchmark.output_type == "multiple_choice":
        choices, answer = _choices(split, place)
        text, target = split.of(place, "doc_to_text"), choices[answer]
    else:
        text, target = split.of(place, "doc_to_text"), _answers(split, place)[0]
    return f"{text}{benchmark.target_delimiter}{target}{benchmark.fewshot_delimiter}"


def _asked(split: _Split, place: int, before: str) -> Row:
    """An item without its id; `before`: description and examples."""
    benchmark = split.benchmark
    if benchmark.output_type == "generate_until":
        return {"context": before + split.of(place, "doc_to_text"), "answers": _answers(split, place)}
    choices, answer = _choices(split, place)
    if benchmark.choices_in_context:
        contexts = [before + opening for opening in choices]
        return {"contexts": contexts, "continuation": split.of(place, "doc_to_target"), "answer": answer}
    item = {"context": before + split.of(place, "doc_to_text"), "choices": choices, "answer": answer}
    if benchmark.labels is not None:
        labels = split.of(place, "labels")
        if not isinstance(labels, list) or len(labels) != len(choices) or not {1} <= set(labels) <= {0, 1}:
            raise split.wrong(place, f"the labels are not a 0 or 1 for each choice: {labels!r:.200}")
        item["labels"] = labels
    return item
