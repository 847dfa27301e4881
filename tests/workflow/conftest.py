"""A tiny project of which everything is made, and ways to wait."""

import time

import pytest
from tiny_project import Pipeline


@pytest.fixture(scope="session")
def complete(tmp_path_factory):
    """A tiny project of which everything is made; tests leave it complete and as declared."""
    pipeline = Pipeline(tmp_path_factory.mktemp("complete") / "project")
    result = pipeline.snakemake()
    assert result.returncode == 0, result.stderr[-3000:]
    return pipeline


@pytest.fixture
def pipeline(complete):
    """The complete project; what the test declares is taken back."""
    declared = [complete.runs, complete.runs.with_name("exhibits.yaml"), complete.scale]
    before = [path.read_text() for path in declared]
    yield complete
    for path, text in zip(declared, before, strict=True):
        path.write_text(text)


@pytest.fixture(scope="session")
def wait_for():
    """`wait_for(met, what)`: returns what `met` gives as soon as that is true."""

    def wait(met, what, seconds=300):
        end = time.monotonic() + seconds
        while not (value := met()):
            assert time.monotonic() < end, f"waited in vain for {what}"
            time.sleep(0.01)
        return value

    return wait
