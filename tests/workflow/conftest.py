"""A tiny project of which everything is made."""

import pytest
from tiny_project import PAPER, Pipeline


@pytest.fixture(scope="session")
def complete(tmp_path_factory):
    """A tiny project of which everything is made; tests leave it complete and as declared.

    `steps`: the records that were there after a run was asked for, after a figure was, and after everything.
    """
    pipeline = Pipeline(tmp_path_factory.mktemp("complete") / "project")
    pipeline.steps = []
    run, figure = (
        f"results/smoke/runs/{PAPER}/german/seed-0/receipt.json",
        f"figures/smoke/{PAPER}/figure_01.png",
    )
    for target in (run, figure, "figures/"):
        result = pipeline.snakemake(target)
        assert result.returncode == 0, result.stderr[-3000:]
        pipeline.steps.append(set(pipeline.records()))
    return pipeline


@pytest.fixture
def pipeline(complete):
    """The complete project; what the test declares is taken back."""
    declared = [complete.runs, complete.runs.with_name("exhibits.yaml"), complete.scale]
    before = [path.read_text() for path in declared]
    yield complete
    for path, text in zip(declared, before, strict=True):
        path.write_text(text)
