"""What a job says at its end, and what `cpt-repro status` says while one runs."""

import pytest

from cpt_repro.files import write_json
from cpt_repro.workflow.jobs import Workflow
from cpt_repro.workflow.summary import made, progress


@pytest.fixture
def work(third_project):
    return Workflow(third_project, "smoke")


def test_what_was_made_is_told_in_five_lines(work):
    assert made(work) == []
    claims = [
        {"paper": "gupta2023", "id": "C1", "verdict": "held"},
        {"paper": "ibrahim2024", "id": "6", "verdict": "failed"},
    ]
    counts = {"held": 1, "failed": 1, "not run": 0}
    work.figures.mkdir(parents=True)
    write_json(work.figures / "claims.json", {"claims": claims, "counts": counts, "test_counts": counts})
    assert made(work)[2] == "report: `cpt-repro report --scale smoke` makes it"  # there is no page yet
    (work.figures / "index.html").write_text("")
    what, verdicts, page, claim, cite = made(work)
    assert what.startswith(f"{len(work.plan.trainings)} trainings, ") and "37 exhibits of scale smoke" in what
    assert verdicts == "2 claims: 1 held, 1 failed (tests: 1 held, 1 failed)"
    assert page.startswith("report: file:///") and page.endswith("/smoke/index.html")
    assert claim.endswith(
        "cpt-repro claims --scale smoke --claim ibrahim2024/6"
    )  # what did not hold comes first
    assert cite.endswith("cpt-repro cite gupta2023/figure_01 --scale smoke")


def test_how_long_the_rest_takes(work, third_project):
    tokens = sum(runs[0].training.tokens for runs in work.plan.trainings.values()) / 1e6
    assert progress(work).startswith(
        f"tokens trained: 0M of {tokens:,.0f}M; how long the rest takes is not known"
    )
    assert progress(Workflow(third_project, "paper")).endswith(
        "GPU-hours at the speed that `cpt-repro plan` tells"
    )
