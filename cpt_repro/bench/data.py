"""The speed of building corpora, against the tokenizer alone."""

from __future__ import annotations

import json
import shutil
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import yaml
import zstandard

from cpt_repro.bench.rows import in_turns, measured_here, ratios
from cpt_repro.data.build import build_corpus, build_tokenizer
from cpt_repro.data.corpus import load_fingerprint
from cpt_repro.data.text import documents
from cpt_repro.data.tokenizer import load_tokenizer
from cpt_repro.declarations.manifests import SPLITS, load_manifest
from cpt_repro.declarations.scale import Scale, Tokenizer
from cpt_repro.planning.plan import Plan
from cpt_repro.project import Project

#: Entries of the papers' tokenizer, and the tokens of one of their sequences.
PAPERS_VOCABULARY, PAPERS_LENGTH = 50_277, 2048


def _building(project: Project, scale: Scale, corpus: str, rounds: int) -> dict[str, Any]:
    """Tokens/s of whole builds of a corpus, with one process and with two, and of the tokenizer alone."""
    tokenizer = load_tokenizer(build_tokenizer(project, scale))
    manifest = load_manifest(project, scale.corpora[corpus])
    texts = [document["text"] for split in SPLITS for document in documents(project, manifest, split)]

    def build(processes: int) -> float:
        # In a folder with the tokenizer alone, so that nothing is remembered of earlier ones (`data.parts`).
        with tempfile.TemporaryDirectory() as folder:
            shutil.copytree(project.data / scale.name / "tokenizer", Path(folder) / scale.name / "tokenizer")
            fresh, began = project.with_(data=Path(folder)), time.perf_counter()
            built = load_fingerprint(build_corpus(fresh, scale, corpus, processes))
            seconds = time.perf_counter() - began
        return sum(domain.tokens for split in built.splits.values() for domain in split.values()) / seconds

    def tokenize() -> float:
        began, count = time.perf_counter(), 0
        for k in range(0, len(texts), 512):
            count += sum(map(len, tokenizer.encode_batch_fast(texts[k : k + 512], add_special_tokens=False)))
        return count / (time.perf_counter() - began)

    arms = {"build": partial(build, 1), "two_processes": partial(build, 2), "tokenizer": tokenize}
    rates = in_turns(arms, rounds)
    least, ratio, most = ratios(rates["build"], rates["tokenizer"])
    return {
        "corpus": corpus,
        "vocabulary": tokenizer.get_vocab_size(),
        **{arm: round(statistics.median(values)) for arm, values in rates.items()},
        "ratio": ratio,
        "ratio_range": [least, most],
        "ratio_of_two_processes": ratios(rates["two_processes"], rates["build"])[1],
    }


def _as_on_the_hub(plan: Plan, folder: Path, files: int = 24) -> tuple[Project, Scale]:
    """A project and a scale whose only corpus is the text of all the scale's, in a data set of the hub.

    Its vocabulary is as large as the papers', or as the text gives.
    """
    project = plan.project.with_(root=folder, data=folder / "data", hub_copies=folder / "hub")
    copy = project.hub_copies / "datasets" / "bench" / "bench"
    for path in (copy, project.manifests):
        path.mkdir(parents=True)
    manifests = [plan.manifest(corpus) for corpus in plan.scale.corpora]
    texts = [document["text"] for one in manifests for document in documents(plan.project, one, "train")]
    for k in range(files):
        lines = "".join(json.dumps({"text": text}) + "\n" for text in texts[k::files])
        (copy / f"{k:02d}.jsonl.zst").write_bytes(zstandard.compress(lines.encode()))
    manifest = {"kind": "hub", "name": "bench", "dataset": "bench/bench", "revision": None}
    manifest |= {"format": "jsonl.zst", "domains": {"all": 1}, "tokens_billions": 1, "validation_share": 0.2}
    manifest |= {"splits": {"train": {"files": ["*.jsonl.zst"]}}}
    manifest |= dict.fromkeys(("title", "about", "licence", "gating", "note"), "")
    (project.manifests / "bench.yaml").write_text(yaml.safe_dump(manifest))
    tokenizer = Tokenizer(vocab_size=PAPERS_VOCABULARY, train_characters=20_000_000)
    changes = {"tokenizer": tokenizer, "corpora": {"bench": "bench"}, "sequence_length": PAPERS_LENGTH}
    return project, plan.scale.model_copy(update=changes)


def bench_data(plan: Plan, rounds: int) -> list[dict[str, Any]]:
    """Rows on whole corpus builds: read, check, tokenise, pack, write, hash.

    The first is of the second of the scale's corpora, the other of all its text in the hub's format.
    """
    corpus, same = [*plan.scale.corpora][:2][-1], measured_here("data", plan.scale.name, rounds)
    with tempfile.TemporaryDirectory() as folder:
        own = plan.project.with_(data=Path(folder) / "own"), plan.scale, corpus
        hub = *_as_on_the_hub(plan, Path(folder)), "bench"
        return [same | _building(*which, rounds) for which in (own, hub)]
