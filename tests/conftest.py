"""Shared by the tests: one thread, no network, one hypothesis profile, projects to try things in."""

import os
import time
from pathlib import Path

os.environ.update(
    OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1"
)
for _name in ("CPT_REPRO_STORE", "CPT_REPRO_CORPORA", "CPT_REPRO_HUB", "CPT_REPRO_SHARDS_REMOTE"):
    os.environ.pop(_name, None)

import pytest
from hypothesis import HealthCheck, settings
from third_study import REPOSITORY, put_third_study

from cpt_repro.declarations.scale import load_scale
from cpt_repro.planning.plan import Plan
from cpt_repro.project import Project

# Same examples every time, and no clock: a busy machine is no fault.
settings.register_profile("calm", deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
settings.load_profile("calm")


@pytest.fixture(scope="session")
def repository() -> Project:
    """The project as it is committed, with pocket's receipts and figures. Not to be written to."""
    return Project.at(REPOSITORY)


@pytest.fixture(scope="session")
def plan_of(repository):
    """`plan_of("pocket")`: the committed plan of a scale."""
    plans = {}

    def plan(scale: str) -> Plan:
        if scale not in plans:
            plans[scale] = Plan(repository, load_scale(repository, scale))
        return plans[scale]

    return plan


@pytest.fixture
def third_project(tmp_path) -> Project:
    """A project of its own with the two real papers and a small third one, and no results."""
    return put_third_study(tmp_path / "third")


@pytest.fixture(scope="session")
def built(tmp_path_factory) -> Project:
    """A project with the smoke corpora and tokenizer built. Not to be written to."""
    from cpt_repro.data.build import build_corpus, build_tokenizer

    project = put_third_study(tmp_path_factory.mktemp("built") / "project")
    scale = load_scale(project, "smoke")
    build_tokenizer(project, scale)
    for corpus in scale.corpora:
        build_corpus(project, scale, corpus, progress=False)
    return project


@pytest.fixture(scope="session")
def wait_for():
    """`wait_for(met, what)`: returns what `met` gives as soon as that is true."""

    def wait(met, what, seconds=600):
        end = time.monotonic() + seconds
        while not (value := met()):
            assert time.monotonic() < end, f"waited in vain for {what}"
            time.sleep(0.01)
        return value

    return wait


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
    if path and _FAULTS and exitstatus == 0:
        lines = [
            "# Faults injected by the tests",
            "",
            "Made by `make torture`; every line is a test that passed.",
            "",
        ]
        lines += ["| fault | injected | outcome |", "| --- | --- | --- |"]
        lines += [f"| {fault} | {times} | {outcome} |" for fault, (times, outcome) in sorted(_FAULTS.items())]
        Path(path).write_text("\n".join(lines) + "\n", encoding="utf-8")
