"""Runs that start from a model from outside: what a plan tells of them, what they are, what they replay."""

import pytest
from tiny_models import fresh, old_config, plan_from, write_model

from cpt_repro.declarations.scale import load_scale
from cpt_repro.errors import UserError
from cpt_repro.files import write_json
from cpt_repro.planning.mixture import streams
from cpt_repro.planning.plan import Plan

PYTHIA = "gupta2023/deduplicated-upstream/pythia"


@pytest.fixture
def project(third_project):
    write_model(third_project.root / "model", fresh(5).state_dict())
    return third_project


def test_a_plan_tells_what_cannot_fit(project):
    with pytest.raises(UserError, match="run 'child'.*the folder does not exist"):
        plan_from(project, "./nowhere")
    wide = project.root / "wide"
    wide.mkdir()
    write_json(wide / "config.json", old_config(vocab_size=50304))
    with pytest.raises(UserError, match="made_up.*'vocab_size: 50304'.*configs/scales/smoke.yaml"):
        plan_from(project, "./wide")
    size = {"layers": 24, "width": 1024, "heads": 16, "vocab_size": 50304}
    words = "24 layers, width 1024, 16 heads and 50304 rows.*smoke.yaml has 2 layers"
    with pytest.raises(UserError, match=words):
        plan_from(project, {"model": "EleutherAI/pythia-410m@step143000", "size": size})


def test_a_training_is_of_what_the_model_holds(project):
    (plain,) = plan_from(project, "./model").runs.values()
    assert plain.training.external.model == "./model" and plain.parent is None
    (project.root / "model").rename(project.root / "moved")
    (moved,) = plan_from(project, "./moved").runs.values()
    (whole_path,) = plan_from(project, str(project.root.resolve() / "moved")).runs.values()
    assert plain.identity == moved.identity == whole_path.identity
    write_model(project.root / "model", fresh(6).state_dict())
    (other,) = plan_from(project, "./model").runs.values()
    assert other.identity != plain.identity


def test_what_the_model_saw_is_replayed(project):
    seen = {"model": "./model", "data": {"pile": 1}, "billions": 300}
    (run,) = plan_from(project, seen, replay_fraction=0.25).runs.values()
    replay, new = run.training.mixture
    assert (replay.share, new.share) == (0.25, 0.75)
    assert {stream.corpus for stream in streams((replay,))} == {"pile"}
    with pytest.raises(UserError, match="replay"):
        plan_from(project, "./model", replay_fraction=0.05)


def test_the_published_model_takes_the_place_of_the_upstream_run(repository):
    def planned(name, variant):
        scale = load_scale(repository, name).model_copy(update={"variants": (variant,)})
        return Plan(repository, scale)

    plan = planned("paper", PYTHIA)
    assert "Pythia" in plan.absent["gupta2023", "410m/pile"]
    started = {run.name: run.training.external for run in plan.runs.values() if run.training.external}
    steps = (143000, 27000, 10000)
    assert len(started) == 15
    assert {one.tokens for one in started.values()} == {step * 1024 * 2048 for step in steps}
    early = started["410m/pile@27000--sp/warmup-0.01"]
    assert early.model == early.weights == "EleutherAI/pythia-410m@step27000"
    assert not [r for r in plan.runs.values() if r.paper == "ibrahim2024" and r.training.external]
    deduplicated = planned("paper", f"{PYTHIA}-deduped")
    both = [
        {r.training.external.model for r in p.runs.values() if r.training.external}
        for p in (plan, deduplicated)
    ]
    assert len(both[0] | both[1]) == 6
    for name in ("smoke", "pocket", "desk"):
        with pytest.raises(UserError, match=f"24 layers, width 1024.*configs/scales/{name}.yaml"):
            planned(name, PYTHIA)
