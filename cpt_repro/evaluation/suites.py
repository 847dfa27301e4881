"""A scale's suites as files: published benchmarks (`benchmarks.py`), or local tasks made from held-out text.

Local tasks stand in for the papers' suites (Ibrahim 2024, section 5.4, A.6) where models are small. Both kinds are
multiple choice with four choices, so that chance is 1/4 and a model of any size can be told from it:

- `continuation` (after HellaSwag): the true next words against three passages of the same length from other documents
  of the same corpus; metric `acc_norm`, by the likelihood per character of the choice.
- `last_word` (after LAMBADA): the true next word against three words drawn with their frequency in the corpus, so that
  knowing frequencies alone gives chance; metric `acc`. LAMBADA's own whole-word accuracy is near 0 for small models.

Words are what stands between white space; items join them by single spaces. Choices longer in tokens than half of the
scale's sequence (tables, addresses, code) are left out, so that context remains beside them.
"""

from __future__ import annotations

import itertools
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from tokenizers import Tokenizer

from cpt_repro.data.shards import REBUILD
from cpt_repro.data.tokenizer import verify_tokenizer
from cpt_repro.declarations.scale import Published, Scale, Suite, Task
from cpt_repro.errors import UserError
from cpt_repro.evaluation.benchmarks import items_of, metric_of
from cpt_repro.files import digest, file_digest, locked, read_json, write_json, write_text
from cpt_repro.project import SCALES
from cpt_repro.records.receipts import read_fingerprint

CHOICES = 4
_METRICS = {"continuation": "acc_norm", "last_word": "acc"}


class Document(NamedTuple):
    """One held-out document, split at white space."""

    id: str
    words: list[str]


def held_out(root: Path, corpus: str) -> list[Document]:
    """Documents of `root/<corpus>/validation.jsonl` in file order; a missing or broken file is a `UserError`.

    So is one that is not what the corpus' fingerprint says, where that is there.
    """
    path = Path(root) / corpus / "validation.jsonl"
    if not path.is_file():
        raise UserError(
            "the held-out text does not exist.", where=str(path), do="Prepare the data of this scale first."
        )
    record = path.with_name("fingerprint.json")
    found = file_digest(path)
    expected = read_fingerprint(record)["validation_documents"] if record.is_file() else found
    if found != expected:
        fault = f"the held-out text is altered: SHA-256 {expected} expected, {found} found."
        raise UserError(fault, where=str(path), do=REBUILD)
    documents = []
    with open(path, encoding="utf-8") as stream:
        for number, line in enumerate(stream, start=1):
            try:
                row = json.loads(line)
                documents.append(Document(str(row["id"]), row["text"].split()))
            except (ValueError, KeyError, TypeError, AttributeError):
                where = f"{path}, line {number}"
                raise UserError(
                    "not an object with 'id' and 'text'.", where=where, do="Prepare the data again."
                ) from None
    return documents


def metric(task: Task | Published) -> str:
    """Name of the metric that a task is scored by."""
    return metric_of(task) if task.kind == "published" else _METRICS[task.kind]


def suites_folder(root: Path) -> Path:
    """The folder of the task files of a scale's data `root`."""
    return Path(root) / "suites"


def build_suites(scale: Scale, root: Path) -> Path:
    """Writes `root/suites/<suite>/<task>.{jsonl,yaml}`, then `root/suites/fingerprint.json`, whose path it returns.

    A local task's items come in equal numbers from the suite's corpora and as evenly as possible from their documents.
    The bytes depend only on the text, the tokenizer (`root/tokenizer`) and the tasks' declarations; of a published one
    on its declaration and its pinned data, which this fetches. `UserError` if a corpus has too little held-out text, or
    data of the hub is not to be had or not what it was.

    The YAML is lm-eval's and works with its command line from within the suite's folder (but for the metric mc2, which
    `harness` adds).
    """
    with locked(Path(root) / ".suites.lock"):
        return _build(scale, root)


def _build(scale: Scale, root: Path) -> Path:
    folder = suites_folder(root)
    local = _LocalTasks(scale, root) if any(suite.corpora for suite in scale.suites.values()) else None
    # The fingerprint goes first and comes last: where it is, the suites are whole.
    (folder / "fingerprint.json").unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
    files, sources = {}, {}
    for suite_name, suite in scale.suites.items():
        for task_name, task in suite.tasks.items():
            if task.kind == "published":
                benchmark, items, sources[f"{suite_name}/{task_name}"] = items_of(task)
                config = benchmark.lm_eval_task(f"{suite_name}.{task_name}", f"{task_name}.jsonl")
            else:
                items = local.items(suite_name, suite, task_name, task)
                config = _lm_eval_task(suite_name, task_name, task)
            lines = "".join(json.dumps(item, ensure_ascii=False, sort_keys=True) + "\n" for item in items)
            for name, text in ((f"{task_name}.jsonl", lines), (f"{task_name}.yaml", yaml.safe_dump(config))):
                write_text(folder / suite_name / name, text)
                files[f"{suite_name}/{name}"] = file_digest(folder / suite_name / name)
    told = {"fingerprint": digest(files), "files": files}
    write_json(folder / "fingerprint.json", told | ({"sources": sources} if sources else {}))
    return folder / "fingerprint.json"


def _lm_eval_task(suite_name: str, task_name: str, task: Task) -> dict[str, Any]:
    """lm-eval's declaration of a local task."""
    return {
        "task": f"{suite_name}.{task_name}",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": f"{task_name}.jsonl"}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "context",
        "doc_to_choice": "choices",
        "doc_to_target": "answer",
        "target_delimiter": " ",
        "num_fewshot": 0,
        "metric_list": [{"metric": metric(task), "aggregation": "mean", "higher_is_better": True}],
        "metadata": {"version": 1},
    }


class _LocalTasks:
    """What local tasks are made of: held-out text and the tokenizer."""

    def __init__(self, scale: Scale, root: Path):
        tokenizer_file = Path(root) / "tokenizer" / "tokenizer.json"
        if not tokenizer_file.is_file():
            raise UserError(
                "the tokenizer does not exist.",
                where=str(tokenizer_file),
                do="Prepare this scale's data first.",
            )
        verify_tokenizer(tokenizer_file.parent)
        self.scale, self.tokenizer = scale, Tokenizer.from_file(str(tokenizer_file))
        corpora = sorted({corpus for suite in scale.suites.values() for corpus in suite.corpora})
        self.texts = {corpus: held_out(root, corpus) for corpus in corpora}

    def _fits(self, choice: str) -> bool:
        return (
            len(self.tokenizer.encode(f" {choice}", add_special_tokens=False))
            <= self.scale.sequence_length // 2
        )

    def items(self, suite_name: str, suite: Suite, task_name: str, task: Task) -> list[dict]:
        """The items of one task."""
        key = f"suites.{suite_name}.tasks.{task_name}"
        shares = [len(range(i, task.documents, len(suite.corpora))) for i in range(len(suite.corpora))]
        parts = []
        for corpus, share in zip(suite.corpora, shares, strict=True):
            # Seeding by a string does not depend on PYTHONHASHSEED.
            rng = random.Random(f"{suite_name}/{task_name}/{corpus}")
            where = f"{SCALES / self.scale.name}.yaml, {key}"
            found = _items(task, share, corpus, self.texts[corpus], rng, self._fits, where)
            if len(found) < share:
                size = task.context_words + _length(task)
                raise UserError(
                    f"{share} items are needed from the corpus '{corpus}', and its held-out text gives "
                    f"{len(found)} (stretches of {size} words in {len(self.texts[corpus])} documents).",
                    where=where,
                    do=f"Lower 'documents' to at most {len(found) * len(suite.corpora)}, or 'context_words'.",
                )
            parts.append(found)
        # Corpora take turns, so that the first items of a task are a fair sample of it.
        return [item for turn in itertools.zip_longest(*parts) for item in turn if item is not None]


def verify_suites(root: Path) -> str:
    """Compares the task files with the hashes in `fingerprint.json`, and returns the fingerprint."""
    path, do = (
        suites_folder(root) / "fingerprint.json",
        "Remove it and make the tasks again: `cpt-repro suites`.",
    )
    told = read_json(path)
    files = told.get("files") if isinstance(told, dict) else None
    if not isinstance(files, dict) or digest(files) != told.get("fingerprint"):
        raise UserError("the fingerprint does not match its contents.", where=str(path), do=do)
    for name, expected in files.items():
        file = path.parent / name
        found = file_digest(file) if file.is_file() else "no file"
        if found != expected:
            fault = f"the task is altered: SHA-256 {expected} expected, {found} found."
            raise UserError(fault, where=str(file), do=do)
    return told["fingerprint"]


def _length(task: Task) -> int:
    """Words of a choice."""
    return task.continuation_words if task.kind == "continuation" else 1


def _items(
    task: Task,
    count: int,
    corpus: str,
    documents: list[Document],
    rng: random.Random,
    fits: Callable[[str], bool],
    where: str,
) -> list[dict]:
    """Items of one task from one corpus: `count`, or as many as there are."""
    length = _length(task)
    words = [word for document in documents for word in document.words]
    items: list[dict] = []
    for index, start in _windows(documents, task.context_words + length, rng):
        if len(items) == count:
            break
        window = documents[index].words[start : start + task.context_words + length]
        true = " ".join(window[task.context_words :])
        if not fits(true):
            continue
        choices = [true]
        for _ in range(1000):
            other = rng.choice(words) if task.kind == "last_word" else _passage(documents, index, length, rng)
            if other is not None and other not in choices and fits(other):
                choices.append(other)
            if len(choices) == CHOICES:
                break
        else:
            need = "other documents as long" if task.kind == "continuation" else "four different words"
            raise UserError(
                f"the held-out text of the corpus '{corpus}' gives no {CHOICES - 1} false choices; "
                f"there must be {need}.",
                where=where,
                do="Lower 'continuation_words', or give the corpus more held-out text.",
            )
        rng.shuffle(choices)
        items.append(
            {
                "id": f"{documents[index].id}#{start}",
                "corpus": corpus,
                "context": " ".join(window[: task.context_words]),
                "choices": choices,
                "answer": choices.index(true),
            }
        )
    return items


def _windows(documents: list[Document], size: int, rng: random.Random) -> list[tuple[int, int]]:
    """All (document, first word) of stretches of `size` words that do not overlap, documents taking turns."""
    starts = []
    for index, document in enumerate(documents):
        places = [(index, start) for start in range(0, len(document.words) - size + 1, size)]
        rng.shuffle(places)
        starts.append(places)
    rng.shuffle(starts)
    return [place for turn in itertools.zip_longest(*starts) for place in turn if place is not None]


def _passage(documents: list[Document], not_from: int, length: int, rng: random.Random) -> str | None:
    """`length` words from a random place of another document, or None if the draw fell on an unfit one."""
    index = rng.randrange(len(documents))
    words = documents[index].words
    if index == not_from or len(words) < length:
        return None
    start = rng.randrange(len(words) - length + 1)
    return " ".join(words[start : start + length])
