"""A scale's suites as files: items of published benchmarks, or of tasks made from held-out text.

`data/<scale>/suites/<suite>/<task>.jsonl` has a task's items, and `suites/fingerprint.json` says what they
were made from. Both are data: how items are asked and scored is read from the declarations alone.

Tasks made from text stand in for the papers' suites (Ibrahim 2024, section 5.4, A.6) where models are small.
Both kinds have four choices, so that chance is 1/4 and a model of any size can be told from it:

- `continuation` (after HellaSwag): the true next words against three passages of the same length from other
  documents of the corpus; metric `acc_norm`, by the likelihood per character of the choice.
- `last_word` (after LAMBADA): the true next word against three words drawn with their frequency in the
  corpus, so that knowing frequencies alone gives chance; metric `acc`. Small models guess no whole word.

Words are what stands between white space; items join them by single spaces. Choices longer in tokens than
half of the scale's sequence (tables, addresses, code) are left out, so that context remains beside them.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import random
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from pydantic import ValidationError

from cpt_repro.data.tokenizer import load_tokenizer, verify_tokenizer
from cpt_repro.declarations.benchmarks import Benchmark, Scoring, scoring_of, task_digests
from cpt_repro.declarations.scale import Scale, Suite, Task
from cpt_repro.declarations.strict import Strict, parse
from cpt_repro.errors import UserError
from cpt_repro.evaluation.items import Choices, Item, PublishedTask, kind_of
from cpt_repro.files import file_digest, locked, opened, read_bytes, read_json, write_json, write_text
from cpt_repro.project import Project
from cpt_repro.records.receipts import read_fingerprint

CHOICES = 4
#: Bytes of a held-out document with its names, and of the items of a task, far beyond any that is.
_MOST_OF_A_LINE, _MOST_OF_A_TASK = 64 << 20, 1 << 30
_REMAKE = "Make the tasks again: `cpt-repro suites --scale SCALE`."


class Document(NamedTuple):
    """One held-out document, its words split at white space."""

    id: str
    words: list[str]


class TaskFile(Strict):
    """The items of one task: the digest of all that decided them, and the SHA-256 of their file."""

    declaration: str
    items: str


class SuitesRecord(Strict):
    """`suites/fingerprint.json`: the tasks that there are, `<suite>/<task>`."""

    tasks: dict[str, TaskFile]


class LoadedTask(NamedTuple):
    """A task as it is scored."""

    declaration: str
    scoring: Scoring
    items: list[Item]


def suites_record(project: Project, scale: Scale) -> Path:
    """Where the record of a scale's task files lies, beside the folders of its suites."""
    return project.data / scale.name / "suites" / "fingerprint.json"


def build_suites(project: Project, scale: Scale, data: Mapping[str, str]) -> Path:
    """Writes the items of all tasks, then their record, whose path it returns.

    `data`: corpus -> digest of what decides its tokens (`Plan.data`). The bytes depend only on what
    `task_digests` names, and the pinned data of published tasks, which this fetches. `UserError` if a corpus
    has too little held-out text, or data of the hub is not to be had or not what it was.
    """
    record, tasks = suites_record(project, scale), {}
    digests, folder = task_digests(project, scale, data), record.parent
    with locked(folder.with_name(".suites.lock")):
        # The record goes first and comes last: where it is, the suites are whole.
        record.unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
        local = _LocalTasks(project, scale)
        for suite_name, suite in scale.suites.items():
            for name, task in suite.tasks.items():
                scoring, file = scoring_of(project, task), folder / suite_name / f"{name}.jsonl"
                if isinstance(scoring, Benchmark):
                    items = PublishedTask(project, scoring).items()
                else:
                    items = local.items(suite_name, suite, name, task)
                rows = (item.model_dump(mode="json", exclude_defaults=True) for item in items)
                lines = (json.dumps(row, ensure_ascii=False, sort_keys=True) + "\n" for row in rows)
                write_text(file, "".join(lines))
                written = {"declaration": digests[suite_name][name], "items": file_digest(file)}
                tasks[f"{suite_name}/{name}"] = written
        write_json(record, {"tasks": tasks})
    return record


def read_suites(project: Project, scale: Scale, data: Mapping[str, str]) -> dict[str, dict[str, LoadedTask]]:
    """Suite -> task -> its items; `data` as for `build_suites`.

    A missing, altered or unfit file is a `UserError`, and so is one of a task that was declared otherwise.
    """
    path, digests = suites_record(project, scale), task_digests(project, scale, data)
    record = parse(SuitesRecord, read_json(path), str(path))
    suites: dict[str, dict[str, LoadedTask]] = {name: {} for name in scale.suites}
    for suite_name, suite in scale.suites.items():
        for name, task in suite.tasks.items():
            file = record.tasks.get(f"{suite_name}/{name}")
            if file is None or file.declaration != digests[suite_name][name]:
                what = f"the items of {suite_name}/{name} as it is declared now are not there."
                raise UserError(what, where=str(path), do=_REMAKE)
            scoring = scoring_of(project, task)
            items = _read_items(path.parent / suite_name / f"{name}.jsonl", file.items, kind_of(scoring))
            suites[suite_name][name] = LoadedTask(file.declaration, scoring, items)
    return suites


def _read_items(path: Path, expected: str, kind: type[Item]) -> list[Item]:
    content = read_bytes(path, _MOST_OF_A_TASK) if path.is_file() else b""
    if (actual := hashlib.sha256(content).hexdigest()) != expected:
        fault = f"the task is altered: SHA-256 {expected} expected, {actual} found."
        raise UserError(fault, where=str(path), do=_REMAKE)
    items = []
    try:
        items += (kind.model_validate_json(line) for line in content.splitlines())
    except ValidationError as error:
        fault, where = error.errors()[0]["msg"], f"{path}, line {len(items) + 1}"
        raise UserError(f"not an item of this task ({fault}).", where=where, do=_REMAKE) from None
    if len(items) < 2:
        raise UserError("a task needs 2 items or more.", where=str(path), do=_REMAKE)
    return items


def held_out(folder: Path) -> list[Document]:
    """Documents of a built corpus' `validation.jsonl`, in file order.

    A missing or broken file is a `UserError`, and so is one that is not what the fingerprint beside it says.
    """
    path, record = folder / "validation.jsonl", folder / "fingerprint.json"
    if not path.is_file():
        do = "Prepare the data of this scale first."
        raise UserError("the held-out text does not exist.", where=str(path), do=do)
    actual = file_digest(path)
    expected = read_fingerprint(record).validation_documents if record.is_file() else actual
    if actual != expected:
        fault = f"the held-out text is altered: SHA-256 {expected} expected, {actual} found."
        do = "Rebuild the corpus: `cpt-repro corpus NAME --scale SCALE --rebuild`."
        raise UserError(fault, where=str(path), do=do)
    documents = []
    with opened(path) as stream:
        for number, line in enumerate(iter(lambda: stream.readline(_MOST_OF_A_LINE), b""), start=1):
            try:
                row = json.loads(line)
                row["text"].encode()  # half a pair of surrogates is no text
                documents.append(Document(str(row["id"]), row["text"].split()))
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
                what, where = "not an object with 'id' and 'text'.", f"{path}, line {number}"
                raise UserError(what, where=where, do="Prepare the data again.") from None
    return documents


class _LocalTasks:
    """What tasks made from text are made of: held-out text and the tokenizer, if any are."""

    def __init__(self, project: Project, scale: Scale):
        self.scale, self.path = scale, project.scales / f"{scale.name}.yaml"
        corpora = sorted({corpus for suite in scale.suites.values() for corpus in suite.corpora})
        data = project.data / scale.name
        if corpora:
            verify_tokenizer(data / "tokenizer")
            self.tokenizer = load_tokenizer(data / "tokenizer")
        self.texts = {corpus: held_out(data / corpus) for corpus in corpora}

    def _fits(self, choice: str) -> bool:
        tokens = self.tokenizer.encode(f" {choice}", add_special_tokens=False)
        return len(tokens) <= self.scale.sequence_length // 2

    def items(self, suite_name: str, suite: Suite, name: str, task: Task) -> list[Choices]:
        """As many from each corpus, and as evenly as possible from its documents."""
        where, parts = f"{self.path}, suites.{suite_name}.tasks.{name}", []
        for place, corpus in enumerate(suite.corpora):
            share = len(range(place, task.documents, len(suite.corpora)))
            # Seeding by a string does not depend on PYTHONHASHSEED.
            rng = random.Random(f"{suite_name}/{name}/{corpus}")
            part = list(itertools.islice(self._drawn(task, corpus, rng, where), share))
            if len(part) < share:
                what = f"{share} items are needed from the corpus '{corpus}', and its held-out text gives "
                what += f"{len(part)} (from {len(self.texts[corpus])} documents)."
                do = f"Lower 'documents' to at most {len(part) * len(suite.corpora)}, or 'context_words'."
                raise UserError(what, where=where, do=do)
            parts.append(part)
        return list(_in_turns(parts))

    def _drawn(self, task: Task, corpus: str, rng: random.Random, where: str) -> Iterator[Choices]:
        """Items of one task from one corpus, as many as there are."""
        documents = self.texts[corpus]
        words = [word for document in documents for word in document.words]
        of_words = task.kind == "last_word"
        length = 1 if of_words else task.continuation_words
        for index, start in _windows(documents, task.context_words + length, rng):
            window = documents[index].words[start : start + task.context_words + length]
            true = " ".join(window[task.context_words :])
            if not self._fits(true):
                continue
            choices = [true]
            for _ in range(1000):
                other = rng.choice(words) if of_words else _passage(documents, index, length, rng)
                if other and other not in choices and self._fits(other):
                    choices.append(other)
                if len(choices) == CHOICES:
                    break
            else:
                what = f"the held-out text of the corpus '{corpus}' gives no {CHOICES - 1} false choices."
                do = "Lower 'continuation_words', or give the corpus more documents."
                raise UserError(what, where=where, do=do)
            rng.shuffle(choices)
            yield Choices(
                id=f"{documents[index].id}#{start}",
                corpus=corpus,
                context=" ".join(window[: task.context_words]),
                choices=tuple(choices),
                answer=choices.index(true),
            )


def _in_turns(parts: Sequence[Sequence]) -> Iterator:
    """One of each part, then the next of each, so that the first ones are a fair sample of all."""
    return (one for turn in itertools.zip_longest(*parts) for one in turn if one is not None)


def _windows(documents: list[Document], size: int, rng: random.Random) -> Iterator[tuple[int, int]]:
    """All (document, first word) of stretches of `size` words that do not overlap, documents taking turns."""
    starts = [
        [(index, start) for start in range(0, len(document.words) - size + 1, size)]
        for index, document in enumerate(documents)
    ]
    for places in starts:
        rng.shuffle(places)
    rng.shuffle(starts)
    return _in_turns(starts)


def _passage(documents: list[Document], not_from: int, length: int, rng: random.Random) -> str:
    """`length` words from a random place of another document, or "" if the draw fell on an unfit one."""
    index = rng.randrange(len(documents))
    words = documents[index].words
    if index == not_from or len(words) < length:
        return ""
    start = rng.randrange(len(words) - length + 1)
    return " ".join(words[start : start + length])
