"""Every reader of files that others may have written takes what stands there, or refuses it in one sentence.

`CPT_REPRO_FUZZ` inputs for each (`make fuzz`: 20,000), made from small real files by fixed generators.
"""

import json
import os
import random
import shutil
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from mutations import mutated
from third_study import CLAIMS, EXHIBITS, REPOSITORY, put_third_study

from cpt_repro.claims.grammar import load_claims
from cpt_repro.claims.ledger import Ledger, _analyses
from cpt_repro.data import extract, shards, sources
from cpt_repro.data import tokenizer as tokenizers
from cpt_repro.declarations.benchmarks import load_benchmark
from cpt_repro.declarations.manifests import load_manifest
from cpt_repro.declarations.scale import Scale, load_scale
from cpt_repro.declarations.strict import load, parse
from cpt_repro.declarations.study import Studies
from cpt_repro.errors import UserError
from cpt_repro.evaluation.items import Choices
from cpt_repro.evaluation.suites import SuitesRecord, _read_items
from cpt_repro.exhibits.catalogue import Catalogue, load_exhibits
from cpt_repro.files import digest, read_json
from cpt_repro.models.hub import Repository
from cpt_repro.planning.plan import Plan
from cpt_repro.project import Project
from cpt_repro.records.lookup import Records
from cpt_repro.records.receipts import Evaluation, LaterLosses, Receipt, read_fingerprint, read_record
from cpt_repro.report.citation import read_drawn
from cpt_repro.report.page import Recorded
from cpt_repro.training.store import SavedStates
from cpt_repro.workflow import cost, gpus

INPUTS = int(os.environ.get("CPT_REPRO_FUZZ", "60"))
POCKET = REPOSITORY / "results" / "pocket"
READERS = {}


def reader(name, value, mend=None):
    """Registers a reader of a file; `value()` is what stands in one, or its text."""

    def add(read):
        READERS[name] = (value, mend, read)
        return read

    return add


def cut(value, most=3):
    """A record with its lists cut short, and mappings where they are very long, so that many can be read."""
    if isinstance(value, dict):
        return {key: cut(inner, most) for key, inner in [*value.items()][: 8 * most]}
    return [cut(inner, most) for inner in value[:most]] if isinstance(value, list) else value


def record(name):
    run = "ibrahim2024/405m/pile--sp/replay-0.05/seed-0"
    return json.loads((POCKET / "runs" / run / f"{name}.json").read_text())


def receipt():
    """The losses are cut, and not the training, whose digest stands beside it."""
    whole = record("receipt")
    return {key: value if key == "training" else cut(value) for key, value in whole.items()}


def declared(path):
    return lambda: yaml.safe_load((REPOSITORY / path).read_text(encoding="utf-8"))


#: All that a file of runs may say, of this paper alone.
RUN = {"model": "405m", "data": {"pile": 1}, "iterations": 20000, "validate": ["pile", "sp"]}
RUN |= {"schedule": {"kind": "cosine", "eta_max": 3e-4, "eta_min_ratio": 0.1, "warmup_frac": 0.01}}
OUTSIDE = {"model": "some/model@main", "data": {"pile": 1}, "billions": 300}
RUNS = {
    "paper": "small2026",
    "reference": "A small paper",
    "batch": {"sequences": 1104, "sequence_length": 2048},
    "unit": {"billions": 300, "name": "300B tokens"},
    "corpora": {
        "pile": {"role": "old", "called": "upstream", "stands_for": "the Pile"},
        "sp": {"role": "new", "called": "downstream", "stands_for": "SlimPajama"},
    },
    "models": {"405m": "405M"},
    "runs": {
        "first": RUN,
        "next/{r}": RUN
        | {"each": {"r": [0, 0.05]}, "init_from": {"run": "first"}, "replay_fraction": "{r}", "until": 200}
        | {"data": {"sp/1": 0.5, "sp/2": 0.5}},
        "outside": RUN
        | {"init_from": OUTSIDE, "replay_fraction": 0.1, "batch": {"sequences": 8, "sequence_length": 64}},
    },
    "merges": {"ties": {"base": "first", "task": "next/0", "density": 0.5}},
}


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Project:
    """A project whose files may be overwritten, on a disk in memory where there is one."""
    memory = Path("/dev/shm")
    made = tmp_path_factory.mktemp("fuzz")
    if os.access(memory, os.W_OK):
        made.rmdir()
        made = memory / f"cpt-repro-{os.getpid()}-{made.name}"
    project = put_third_study(made / "project")
    (project.papers / "small2026").mkdir()
    (project.papers / "small2026" / "runs.yaml").write_text(json.dumps(RUNS))
    yield project
    shutil.rmtree(made)


@pytest.fixture(scope="module")
def catalogue(project) -> Catalogue:
    made = Catalogue(Plan(project, load_scale(project, "smoke"), ("third2026",)))
    made.counterparts("third2026")  # what claims name, before its file is changed
    return made


def write(path, raw) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(raw)
    return path


# -- records


@reader("receipt", receipt)
def _(raw, project, **_):
    read_record(Receipt, write(project.results / "receipt.json", raw))


@reader("evaluation", lambda: cut(record("evaluation")))
def _(raw, project, **_):
    read_record(Evaluation, write(project.results / "evaluation.json", raw))


@reader("later losses", lambda: {key: receipt()[key] for key in LaterLosses.model_fields})
def _(raw, project, **_):
    read_record(LaterLosses, write(project.results / "losses.json", raw))


def vouched(value):
    """A fingerprint that is right for what stands beside it, as who shares a folder can make one."""
    if isinstance(value, dict):
        rest = {key: entry for key, entry in value.items() if key != "fingerprint"}
        with suppress(ValueError):
            value["fingerprint"] = digest(rest)
    return value


@reader("fingerprint of a corpus", lambda: json.loads((POCKET / "corpora" / "sp.json").read_text()), vouched)
def _(raw, project, **_):
    read_fingerprint(write(project.results / "fingerprint.json", raw))


def sidecar(name):
    return lambda: cut(json.loads((REPOSITORY / "figures" / "pocket" / f"{name}.json").read_text()))


@reader("sidecar of a figure", sidecar("gupta2023/figure_03"))
@reader("sidecar of a table", sidecar("ibrahim2024/table_02"))
def _(raw, project, **_):
    read_drawn(write(project.figures / "drawn.json", raw))


@reader("ledger of claims", sidecar("claims"))
def _(raw, project, **_):
    path = write(project.figures / "claims.json", raw)
    parse(Ledger, read_json(path), str(path))


@reader("record of a page", sidecar("index"))
def _(raw, project, **_):
    Recorded.of(write(project.figures / "index.json", raw))


STATE = {"iteration": 7, "file": "resume-7.pt", "sha256": sha256(b"state").hexdigest()}
STATE |= {"data": {"pile": "1f"}, "execution": {"ranks": 2}}


@reader("resume record", lambda: [STATE, STATE | {"iteration": 3, "file": "resume-3.pt"}])
def _(raw, project, **_):
    folder = write(project.store / "smoke" / "resume.json", raw).parent
    write(folder / "resume-7.pt", b"state")
    SavedStates(folder, {"pile": "1f"}).newest()


LOCK = {"dataset:some/data@main": {"commit": "0" * 40, "files": {"a.jsonl": "1" * 64}}, "model:a/b@main": {}}


@reader("lock of the hub", lambda: LOCK)
def _(raw, project, **_):
    write(project.hub_lock, raw)
    Repository(project, "dataset", "some/data", "main")._entries()


SPEED = {"scale": "smoke", "model": "405m", "arm": "ours", "date": "2026-11-21", "hardware": "2 cores"}


@reader("measured speeds", lambda: SPEED | {"gpus": 0, "tokens_per_second": 59185.5, "composer": 1})
def _(raw, project, catalogue):
    for path in project.measurements.glob("*"):
        path.unlink()
    write(project.measurements / "x.jsonl", raw)
    plan = catalogue.plan
    work = SimpleNamespace(project=project, plan=plan, scale=plan.scale, records=Records(plan))
    cost._measured(work, "405m", 63_648)


# -- data


SHARD = {"basename": "part.00000/shard.00000.mds", "bytes": 20_000, "hashes": {"sha1": "0" * 40}}
SHARD = {
    "column_encodings": ["ndarray:uint16:65"],
    "column_names": ["tokens"],
    "raw_data": SHARD,
    "samples": 99,
}


@reader("index of shards", lambda: {"version": 2, "shards": [SHARD | {"format": "mds", "zip_data": None}]})
def _(raw, project, **_):
    shards._index(write(project.data / "index.json", raw).parent)


def small_tokenizer():
    return json.loads(tokenizers.train_tokenizer(["the house of trees and rain"], 260).to_str())


@reader("tokenizer", small_tokenizer)
def _(raw, project, **_):
    folder = write(project.data / "tokenizer" / "tokenizer.json", raw).parent
    tokenizers.load_tokenizer(folder).encode("the house")


@reader(
    "record of a tokenizer",
    lambda: {
        "sha256": {"tokenizer.json": sha256(b"{}").hexdigest(), "tokenizer_config.json": "none"},
        "vocab_size": 2,
    },
)
def _(raw, project, **_):
    folder = write(project.data / "saved" / "training.json", raw).parent
    write(folder / "tokenizer.json", b"{}")
    tokenizers.verify_tokenizer(folder)


@reader(
    "record of suites",
    lambda: {"tasks": {f"english/{k}": {"declaration": "0" * 64, "items": "1" * 64} for k in "ab"}},
)
def _(raw, project, **_):
    path = write(project.data / "suites.json", raw)
    parse(SuitesRecord, read_json(path), str(path))


ITEM = {"id": "a#1", "corpus": "sp", "context": "b", "choices": ["c", "d"], "answer": 0, "labels": [1, 0]}


@reader("item of a suite", lambda: ITEM | {"examples": ["e"]})
def _(raw, project, **_):
    raw = json.dumps(ITEM).encode() + b"\n" + raw
    _read_items(write(project.data / "a.jsonl", raw), sha256(raw).hexdigest(), Choices)


@reader("lease of a GPU", lambda: {"gpus": "2", "visible": "0,1", "lock": ""})
def _(raw, project, **_):
    """What a user's variables say, and what lies in a lock's file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CPT_REPRO_GPU_LEASES", str(project.data / "leases"))
        given = dict(enumerate(raw.replace(b"\0", b"").decode("utf-8", "surrogateescape").split('"')))
        patch.setenv("CPT_REPRO_GPUS", given.get(3) or "2")
        patch.setenv("CUDA_VISIBLE_DEVICES", given.get(7, "0"))
        gpus.lease(1, 2, str(project.root), print).close()
        write(project.data / "leases" / "gpu-0.lock", raw)


# -- declarations


def scale():
    return declared("configs/scales/smoke.yaml")()


@reader(
    "scale",
    lambda: (
        scale()
        | {"name": "fuzz", "papers": ["small2026"], "more_seeds": {"seeds": [7], "runs": ["small2026/*"]}}
    ),
)
def _(raw, project, **_):
    Plan(project, load(Scale, write(project.scales / "fuzz.yaml", raw)), ("small2026",))


@reader("runs", lambda: RUNS)
def _(raw, project, catalogue):
    path = project.papers / "small2026" / "runs.yaml"
    before = path.read_bytes()
    try:
        path.write_bytes(raw)
        small = catalogue.plan.scale.model_copy(update={"more_seeds": None})
        Plan(project, small, ("small2026",))
    finally:
        path.write_bytes(before)


for _name in ("smoke_strong", "german_downstream", "english_broad", "slimpajama"):

    @reader(f"manifest {_name}", declared(f"data_manifests/{_name}.yaml"))
    def _(raw, project, name=_name, **_):
        write(project.manifests / f"{name}.yaml", raw)
        _ = load_manifest(project, name).digest


@reader("sources of extraction", lambda: cut(declared("data_manifests/sources.yaml")()))
def _(raw, project, **_):
    write(project.manifests / "sources.yaml", raw)
    extract.load_sources(project)


@reader("a line of a source", lambda: {"question": "Why?", "answer": "So."})
def _(raw, project, **_):
    write(project.root / "a.jsonl", raw)
    sources.jsonl_text(project.root / "a.jsonl", {"question": "", "answer": "\n"})


for _name in ("hellaswag", "mmlu", "nq_open"):

    @reader(f"benchmark {_name}", declared(f"configs/benchmarks/{_name}.yaml"))
    def _(raw, project, name=_name, **_):
        write(project.benchmarks / f"{name}.yaml", raw)
        _ = load_benchmark(project, name).digest


for _name in ("published", "discrepancies"):

    @reader(_name, lambda name=_name: cut(declared(f"configs/papers/gupta2023/{name}.yaml")()))
    def _(raw, project, name=_name, **_):
        write(project.papers / "gupta2023" / f"{name}.yaml", raw)
        getattr(Studies(project)["gupta2023"], name)


@reader(
    "digitised",
    lambda: cut(json.loads((REPOSITORY / "configs/papers/ibrahim2024/digitised.json").read_text()), 2),
)
def _(raw, project, **_):
    write(project.papers / "small2026" / "digitised.json", raw)
    _ = Studies(project)["small2026"].digitised


@reader("exhibits", lambda: yaml.safe_load(EXHIBITS))
def _(raw, project, catalogue):
    write(project.papers / "third2026" / "exhibits.yaml", raw)
    load_exhibits(catalogue.plan.studies["third2026"])


@reader("claims", lambda: yaml.safe_load(CLAIMS))
def _(raw, project, catalogue):
    write(project.papers / "third2026" / "claims.yaml", raw)
    load_claims(catalogue, "third2026")


@reader("analysis", lambda: {"third2026/1": "because", "third2026/2": "*why*"})
def _(raw, project, catalogue):
    write(project.results / "smoke" / "analysis.yaml", raw)
    _analyses(catalogue.plan, {"third2026/1", "third2026/2"})


@pytest.mark.parametrize("name", READERS)
def test_a_reader_takes_it_or_refuses_it_in_one_sentence(name, project, catalogue, fuzzed):
    value, mend, read = READERS[name]
    rng, given = random.Random(name), value()
    read(json.dumps(given).encode(), project=project, catalogue=catalogue)  # as it is, it is taken
    accepted = refused = 0
    for _ in range(INPUTS):
        raw = mutated(given, rng, mend)
        try:
            read(raw, project=project, catalogue=catalogue)
            accepted += 1
        except UserError as error:
            refused += 1
            text = str(error)
            assert error.what and text.isprintable() and len(text) < 3000, raw
            assert any(where in text for where in (str(project.root), "$CPT_REPRO", "configs/scales/")), (
                text,
                raw,
            )
        except BaseException:
            print(raw[:5000])
            raise
    fuzzed(name, accepted, refused)
    assert accepted and refused, (accepted, refused)


#: What longer runs found: reader -> texts that take the place of others in its file.
FOUND = [
    ("tokenizer", '"continuing_subword_prefix": null', '"continuing_subword_prefix": "longer than a token"'),
    ("scale", '"tokens_per_billion": 1000', '"tokens_per_billion": 1e-320'),
    ("scale", '"tokens_per_billion": 1000', '"tokens_per_billion": 0x' + "F" * 4000),
    ("scale", '"every": 40,', '"every": 1e308,'),
    ("scale", '"smoke_weak"', json.dumps("a" * 10_000)),
    ("runs", '"eta_max": 0.0003', f'"eta_max": {10**400}'),
    ("runs", '"init_from": {"run": "first"}', '"init_from": {"run": ""}'),
    ("benchmark hellaswag", '"doc_to_text": "', '"doc_to_text": "{{ ' + "(" * 3000),
]


@pytest.mark.parametrize(("name", "old", "new"), FOUND, ids=[f"{name}, {new[:30]}" for name, _, new in FOUND])
def test_what_was_found_is_refused(name, old, new, project, catalogue):
    value, _, read = READERS[name]
    text = json.dumps(value())
    assert old in text
    with pytest.raises(UserError):
        read(text.replace(old, new).encode(), project=project, catalogue=catalogue)
