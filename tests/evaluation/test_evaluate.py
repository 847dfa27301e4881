"""What is evaluated of models: what their records lack, and no more."""

import pytest
from tiny_evaluation import write_model

from cpt_repro.declarations.benchmarks import task_digests
from cpt_repro.declarations.scale import load_scale
from cpt_repro.errors import UserError
from cpt_repro.evaluation.evaluate import evaluate_models, outstanding
from cpt_repro.evaluation.suites import build_suites
from cpt_repro.files import read_json, write_json
from cpt_repro.planning.plan import Plan
from cpt_repro.records.lookup import Records
from cpt_repro.training.store import Store

MERGE = "third2026/ties/seed-0"


class World:
    """A plan with weights of a merge's runs in its store."""

    def __init__(self, built, root):
        data = root / "data" / "smoke"
        data.mkdir(parents=True)
        for made in (built.data / "smoke").iterdir():
            if made.is_dir() and made.name != "suites":
                (data / made.name).symlink_to(made.resolve())
        self.project = built.with_(data=root / "data", store=root / "store", results=root / "results")
        self.store, self.said = Store(self.project, "smoke"), []
        scale = load_scale(self.project, "smoke")
        self.suites = scale.model_dump(mode="json")["suites"]
        for suite in self.suites.values():
            for task in suite["tasks"].values():
                task["documents"] = 20
        self.declare()
        for seed, (run, iteration) in enumerate(self.plan.model(MERGE).weights):
            write_model(self.store.weights(run.identity, iteration), 640, seed)
        self.run = self.plan.model(MERGE).weights[0][0].id

    def declare(self) -> None:
        """The plan with the suites as they are now, whose items are built."""
        scale = load_scale(self.project, "smoke")
        content = scale.model_dump(mode="json") | {"suites": self.suites}
        self.plan = Plan(self.project, type(scale).model_validate(content), ("third2026",))
        build_suites(self.project, self.plan.scale, self.plan.data)

    def evaluate(self, *models, generating=()) -> dict:
        """Evaluates, and gives the records."""
        corpora = dict.fromkeys(generating, "german")
        evaluate_models(self.plan, Records(self.plan), models, self.store, self.said.append, corpora)
        records = Records(self.plan)
        assert outstanding(self.plan, records, models, corpora) == []
        return {model: records.evaluation(model) for model in models}

    def mark(self, model: str, **environment) -> None:
        """Makes every score of a record 1, so that those that are kept can be told."""
        path = Records(self.plan).evaluation_path(model)
        content = read_json(path)
        for suite in content["suites"].values():
            for score in suite["tasks"].values():
                score["value"] = 1.0
        content["environment"] |= environment
        write_json(path, content)


@pytest.fixture
def world(built, tmp_path):
    return World(built, tmp_path)


@pytest.mark.slow
def test_a_run_and_a_merge_are_evaluated_once(world):
    records = world.evaluate(world.run, MERGE, generating=[world.run])
    digests = task_digests(world.project, world.plan.scale, world.plan.data)
    for model, record in records.items():
        assert (record.id, record.identity) == (model, world.plan.model(model).identity)
        assert record.current(digests) == record
        assert {score.documents for suite in record.suites.values() for score in suite.tasks.values()} == {20}
        assert set(record.environment) == {"lm_eval", "transformers", "torch", "threads", "batch_size"}
    assert len(records[world.run].prompts) == len(records[world.run].generations) == 5
    assert records[MERGE].generations == ()
    assert len(world.said) == 2 and "[2/2]" in world.said[1] and "german" in world.said[1]
    assert world.evaluate(world.run, MERGE, generating=[world.run]) == records and len(world.said) == 2


@pytest.mark.slow
def test_only_what_is_missing_is_scored(world):
    first = world.evaluate(world.run)[world.run]
    english = world.suites["english"]["tasks"]
    english["more"] = english["last_word"] | {"documents": 30}
    world.declare()
    world.mark(world.run, torch="0.1")
    after = world.evaluate(world.run)[world.run]
    assert after.suites["english"].tasks["more"].documents == 30
    kept = [s for name, s in after.suites["english"].tasks.items() if name != "more"]
    assert {score.value for score in kept} == {1.0}
    # What computed the scores that were kept is still told.
    assert after.environment["torch"] == f"0.1, {first.environment['torch']}"

    english["last_word"]["documents"] = 22
    del english["more"]
    world.declare()
    after = world.evaluate(world.run)[world.run]
    assert set(after.suites["english"].tasks) == {"continuation", "last_word"}
    assert after.suites["english"].tasks["continuation"].value == 1
    assert after.suites["english"].tasks["last_word"].documents == 22
    assert after.suites["german"].tasks.keys() == first.suites["german"].tasks.keys()

    world.mark(world.run)
    written = world.evaluate(world.run, generating=[world.run])[world.run]
    assert len(written.generations) == 5
    assert {s.value for suite in written.suites.values() for s in suite.tasks.values()} == {1.0}
    english["continuation"]["documents"] = 24
    world.declare()
    assert world.evaluate(world.run, generating=[world.run])[world.run].generations == written.generations


def test_missing_and_altered_weights_are_not_evaluated(world, monkeypatch):
    path = world.store.weights(
        world.plan.model(world.run).identity, world.plan.model(world.run).weights[0][1]
    )
    monkeypatch.setattr(Store, "recorded_hash", lambda *_: "0" * 64)
    with pytest.raises(UserError, match=f"(?s){path}.*altered: SHA-256 {'0' * 64}"):
        world.evaluate(world.run)
    monkeypatch.undo()
    (path / "model.safetensors").unlink()
    with pytest.raises(UserError, match=f"(?s){path}.*missing"):
        world.evaluate(world.run)
    with pytest.raises(UserError, match=f"(?s){path}.*missing"):
        world.evaluate(MERGE)
    assert not world.project.results.exists()
