"""Shared by the tests: one thread, no network, one hypothesis profile, projects to try things in."""

import gc
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
# As the command line does: what is imported here stays.
gc.set_threshold(100_000, 20, 100)


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
        build_corpus(project, scale, corpus)
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


#: Tables that tests fill: variable that names the file -> what is said above, headings, rows
_TABLES = {
    "CPT_REPRO_FAULT_TABLE": (
        "# Faults injected by the tests\n\nMade by `make torture`; every line is a test that passed.",
        ("fault", "injected", "outcome"),
        {},
    ),
    "CPT_REPRO_FUZZ_TABLE": (
        "# Changed files given to every reader\n\nMade by `make fuzz`: small real files with nodes or bytes "
        "changed. Each is taken, or refused in one sentence.",
        ("reader", "taken", "refused"),
        {},
    ),
}


@pytest.fixture(scope="session")
def faults():
    """`faults(fault, times, outcome)`: puts a line into the table of faults injected."""
    rows = _TABLES["CPT_REPRO_FAULT_TABLE"][-1]

    def record(fault, times, outcome):
        rows[fault] = (rows.get(fault, (0,))[0] + times, outcome)

    return record


@pytest.fixture(scope="session")
def fuzzed():
    """`fuzzed(reader, taken, refused)`: puts a line into the table of changed files."""
    rows = _TABLES["CPT_REPRO_FUZZ_TABLE"][-1]
    return lambda reader, *counts: rows.update({reader: counts})


def pytest_sessionfinish(session, exitstatus):
    """Writes the tables."""
    for variable, (about, headings, rows) in _TABLES.items():
        if (path := os.environ.get(variable)) and rows and exitstatus == 0:
            lines = [headings, ["---"] * len(headings), *((name, *rows[name]) for name in sorted(rows))]
            table = "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)
            Path(path).write_text(f"{about}\n\n{table}", encoding="utf-8")
