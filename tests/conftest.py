"""Shared by the tests: one thread, no network, and the smoke corpora built once."""

import os
from pathlib import Path

os.environ.update(
    OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1"
)

import pytest

from cpt_repro.declarations.scale import load_scale


@pytest.fixture(scope="session")
def smoke_data(tmp_path_factory):
    """Folder of the built smoke corpora."""
    from cpt_repro.data.build import build_corpus, build_tokenizer

    scale, root = load_scale("smoke"), tmp_path_factory.mktemp("data") / "smoke"
    build_tokenizer(scale, root)
    for corpus in scale.corpora:
        build_corpus(scale, corpus, root, progress=False)
    return root


@pytest.fixture(scope="session")
def project(tmp_path_factory):
    """A tiny project of which everything is made; tests leave it complete."""
    from tiny_project import Project

    built = Project(tmp_path_factory.mktemp("project"))
    result = built.snakemake()
    assert result.returncode == 0, result.stderr[-3000:]
    return built


#: fault -> [times injected, outcome]; written as a table where CPT_REPRO_FAULT_TABLE names a file
_FAULTS = {}


@pytest.fixture(scope="session")
def faults():
    """`faults(fault, times, outcome)`: puts a line into the table of faults injected."""

    def record(fault, times, outcome):
        _FAULTS[fault] = (_FAULTS.get(fault, (0,))[0] + times, outcome)

    return record


def pytest_sessionfinish(session, exitstatus):
    """Writes the table of faults."""
    path = os.environ.get("CPT_REPRO_FAULT_TABLE")
    if path and _FAULTS:
        lines = [
            "# Faults injected by the tests",
            "",
            "Made by `make torture`; every line is a test that passed.",
            "",
        ]
        lines += ["| fault | injected | outcome |", "| --- | --- | --- |"]
        lines += [f"| {fault} | {times} | {outcome} |" for fault, (times, outcome) in sorted(_FAULTS.items())]
        text = "\n".join(lines) + "\n"
        if exitstatus == 0:
            Path(path).write_text(text, encoding="utf-8")
