"""Published benchmarks (`configs/benchmarks/<name>.yaml`), and what decides a scale's items and scores.

A declaration has lm-eval's keys and templates, and what lm-eval lacks: the pinned revision, the files of each
split, which rows count, how examples are drawn. Metrics and shots: Ibrahim 2024, section 5.4 and the captions
of Tables 5-7, 10 and 11. Templates run in jinja's sandbox and see the columns of a row alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Annotated, Any, Literal

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment
from pydantic import Field

from cpt_repro.declarations.scale import Published, Scale, Task
from cpt_repro.declarations.strict import Count, Name, Strict, load, parse
from cpt_repro.files import digest
from cpt_repro.project import Project

#: Raised when the meaning of a task changes in code, so that older scores are not taken for it.
VERSION = 1
#: What templates see beside a row's columns: the name, without its ending, of the file that the row is from.
STEM = "_stem"
_EXPRESSION = re.compile(r"\{\{((?:(?!\}\}).)*)\}\}", re.DOTALL)
_TEMPLATES = ("description", "doc_to_text", "doc_to_choice", "doc_to_target", "keep", "group", "labels")

_JINJA = ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
_JINJA.globals.clear()
_JINJA.filters["regex_replace"] = lambda text, pattern, new: re.sub(pattern, new, text)
_JINJA.filters["regex_findall"] = lambda text, pattern: re.findall(pattern, text)

_Option = Literal["ignore_case", "ignore_punctuation", "regexes_to_ignore"]


class Generation(Strict):
    until: tuple[str, ...] = Field(min_length=1)
    max_gen_toks: Count
    do_sample: Literal[False] = False
    temperature: Literal[0] = 0


class Scoring(Strict):
    output_type: Literal["multiple_choice", "generate_until"] = "multiple_choice"
    metric: Literal["acc", "acc_norm", "mc2", "exact_match"]
    #: Options of lm-eval's exact_match.
    metric_options: dict[_Option, bool | tuple[str, ...]] = {}
    #: The choice stands within the text; what follows all of the openings is scored.
    choices_in_context: bool = False
    generation_kwargs: Generation | None = None


#: Of tasks made from held-out text, by their kind.
LOCAL = {"continuation": Scoring(metric="acc_norm"), "last_word": Scoring(metric="acc")}


class Benchmark(Scoring):
    """One declaration. A template that is one `{{ expression }}`, or a column, stands for its value."""

    task: Name
    about: str
    #: What of the data's layout was looked up, and what is assumed.
    note: str
    #: `<owner>/<name>` of a data set on the hub.
    dataset_path: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+/[A-Za-z0-9_.-]+$")]
    #: A commit; None: the one of the first use, which the lock file keeps.
    revision: str | None = Field(pattern=r"^[0-9a-f]{40}$")
    #: Split -> pattern of its files (parquet, or JSON lines).
    files: dict[Name, str] = Field(min_length=1)
    test_split: Name
    #: Rows for which this is false are left out.
    keep: str | None = None
    #: Examples come from rows for which this is the same.
    group: str | None = None
    description: str = ""
    #: With `choices_in_context` the right choice's index; `doc_to_choice` are then the openings, and
    #: `doc_to_target` is what follows all of them.
    doc_to_text: str
    doc_to_choice: str | tuple[str, ...] | None = None
    doc_to_target: str | int
    #: Of every choice, 1 if it is true (metric mc2).
    labels: str | None = None
    fewshot_delimiter: str = "\n\n"
    num_fewshot: int = Field(default=0, ge=0, le=100)
    fewshot_split: Name | None = None
    fewshot_sampler: Literal["random", "first_n"] = "random"

    def model_post_init(self, context: Any) -> None:
        generated = self.output_type == "generate_until"
        if generated != (self.metric == "exact_match") or generated != (self.generation_kwargs is not None):
            raise ValueError("generate_until, the metric exact_match and 'generation_kwargs' go together")
        if generated == (self.doc_to_choice is not None):
            raise ValueError("'doc_to_choice' belongs to multiple_choice, and is needed there")
        if (self.metric == "mc2") != (self.labels is not None):
            raise ValueError("'labels' belong to the metric mc2")
        if unknown := {self.test_split, self.fewshot_split} - {None, *self.files}:
            raise ValueError(f"'files' lack the split {unknown.pop()}")
        if self.num_fewshot and self.fewshot_split is None:
            raise ValueError(f"{self.num_fewshot} examples need a 'fewshot_split'")
        try:
            _ = self._compiled
        except (jinja2.TemplateError, RecursionError) as error:
            raise ValueError(f"a template is wrong: {error}") from None

    @property
    def digest(self) -> str:
        """SHA-256 of all that decides the items and the score; prose does not."""
        return digest(self.model_dump(mode="json", exclude_defaults=True, exclude={"about", "note"}))

    @cached_property
    def _compiled(self) -> dict[str, Callable[[dict[str, Any]], Any]]:
        return {name: _compile(getattr(self, name)) for name in _TEMPLATES}

    def of(self, template: str, row: dict[str, Any]) -> Any:
        """What the template of that key gives for a row, or the constant; raises what it meets in the row."""
        value = self._compiled[template](row)
        if isinstance(value, jinja2.Undefined):
            str(value)  # raises
        return value


def _compile(source: Any) -> Callable[[dict[str, Any]], Any]:
    if not isinstance(source, str):
        return lambda row: source
    one = _EXPRESSION.fullmatch(source)
    if one or source.isidentifier():
        return _JINJA.compile_expression(one[1] if one else source, undefined_to_none=False)
    return _JINJA.from_string(source).render


def load_benchmark(project: Project, name: str) -> Benchmark:
    """Reads `configs/benchmarks/<name>.yaml`; any fault is a `UserError` naming file and key."""
    return load(Benchmark, project.benchmarks / f"{name}.yaml")


def scoring_of(project: Project, task: Task | Published) -> Scoring:
    """How a task is scored; of a published one the `Benchmark`, with the examples that the scale asks for."""
    if not isinstance(task, Published):
        return LOCAL[task.kind]
    benchmark = load_benchmark(project, task.benchmark)
    if task.num_fewshot is None:
        return benchmark
    where = str(project.benchmarks / f"{task.benchmark}.yaml")
    return parse(Benchmark, benchmark.model_dump() | {"num_fewshot": task.num_fewshot}, where)


def task_digests(project: Project, scale: Scale, data: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """Suite -> task -> digest of all that decides its items, and its score on given weights.

    `data`: `Plan.data`. A published task depends on its declaration alone; one made from text on that of its
    suite, on the names, which seed the draw, and on the length of sequences, which choices must fit.
    """
    digests: dict[str, dict[str, str]] = {}
    for suite_name, suite in scale.suites.items():
        text = [[corpus, data[corpus]] for corpus in suite.corpora]
        digests[suite_name] = {}
        for name, task in suite.tasks.items():
            if isinstance(scoring := scoring_of(project, task), Benchmark):
                decides: list[Any] = [scoring.digest]
            else:
                decides = [part.model_dump(mode="json", exclude_defaults=True) for part in (task, scoring)]
                decides += [suite_name, name, text, scale.sequence_length]
            digests[suite_name][name] = digest([VERSION, *decides])
    return digests
