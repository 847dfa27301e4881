"""What is left to be done, as receipts and the store tell; receipts that cannot be read; files whole or absent."""

import json

import pytest

from cpt_repro.declarations.scale import load_scale
from cpt_repro.declarations.strict import parse
from cpt_repro.errors import UserError
from cpt_repro.planning.evaluation_identity import evaluation_identity
from cpt_repro.files import canonical_json, digest, read_json, whole_file, write_json, write_text
from cpt_repro.declarations.runs import Paper
from cpt_repro.planning.plan import Plan
from cpt_repro.records.receipts import (
    Evaluation,
    FinalLoss,
    Receipt,
    evaluation_path,
    is_current,
    read_evaluation,
    read_receipt,
    receipt_path,
    write,
)
from cpt_repro.training.store import Store
from cpt_repro.workflow.jobs import outstanding

COSINE = {"kind": "cosine", "eta_max": 3e-4, "eta_min": 3e-5}
PARENT, CHILD, GRANDCHILD, ALONE = (
    f"made_up/{name}/seed-0" for name in ("parent", "child", "grandchild", "alone")
)


def run(**changes):
    out = {
        "model": "405m",
        "data": {"pile": 1},
        "iterations": 20000,
        "schedule": COSINE,
        "validate": ["pile"],
    }
    return out | changes


def make_plan(**changes):
    runs = {
        "parent": run(),
        "child": run(init_from={"run": "parent", "iteration": 10000}, data={"sp": 1}, keep=["optimizer"]),
        "grandchild": run(init_from={"run": "child"}, data={"german": 1}),
        "alone": run(data={"german": 1}),
    }
    for name, change in changes.items():
        runs[name] = runs[name] | change
    batch = {"sequences": 1104, "sequence_length": 2048}
    raw = {"paper": "made_up", "reference": "none", "batch": batch, "runs": runs}
    raw["merges"] = {"merge": {"base": "parent", "task": "alone", "density": 0.5}}
    return Plan(load_scale("smoke"), papers=[parse(Paper, raw, "runs.yaml")])


def make_receipt(segment):
    corpora = segment.validate_on
    return Receipt(
        identity=segment.identity,
        segment=segment,
        parent_weights=None,
        data=dict.fromkeys(segment.data, "0" * 64),
        entropy_floor=dict.fromkeys(corpora),
        curves={corpus: [(0, 7.0), (segment.iterations, 3.0)] for corpus in corpora},
        learning_rate=[(0, 0.0)],
        train_loss=[],
        final={corpus: FinalLoss(loss=3.0, evaluations=1, stderr=0.0, noise=0.01) for corpus in corpora},
        checkpoints={segment.iterations: "0" * 64},
        parameters=1,
        code={},
        environment={},
        measured={},
    )


class World:
    """A plan, a folder of results and a store, all below a temporary folder."""

    def __init__(self, folder):
        self.plan, self.results = make_plan(), folder / "results"
        self.store = Store("smoke", folder / "store")

    def receipts(self, *names):
        for name in names or self.plan.segments:
            segment = self.plan.segments[name]
            write(receipt_path(self.results, "smoke", name), make_receipt(segment))

    def weights(self, name, iteration=None, optimizer=False):
        segment = self.plan.segments[name]
        folder = self.store.weights(segment, segment.iterations if iteration is None else iteration)
        folder.mkdir(parents=True)
        if optimizer:
            (folder / "optimizer.pt").write_bytes(b"")

    def evaluation(self, model):
        identity, _ = evaluation_identity(self.plan, model)
        record = Evaluation(
            id=model, identity=identity, suites={}, suites_fingerprint="0" * 64, environment={}, prompts=[]
        )
        write(evaluation_path(self.results, "smoke", model), record)

    def outstanding(self, *evaluations):
        return outstanding(self.plan, self.results, self.store, list(evaluations))


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


# -- outstanding


def test_all_is_outstanding_at_first_parents_first(world):
    assert world.outstanding(CHILD) == ([PARENT, CHILD, GRANDCHILD, ALONE], [CHILD])


def test_current_receipts_are_not_trained_again_without_any_weights(world):
    world.receipts()
    assert world.outstanding() == ([], [])


def test_stale_identity_is_trained_again(world):
    world.receipts()
    world.plan = make_plan(alone={"iterations": 21000})
    assert world.outstanding() == ([ALONE], [])


def test_change_of_a_parent_makes_all_that_follows_stale(world):
    world.receipts()
    world.plan = make_plan(parent={"iterations": 21000})
    assert world.outstanding() == ([PARENT, CHILD, GRANDCHILD], [])


def test_a_missing_child_needs_its_parents_weights_all_the_way_up(world):
    world.receipts(PARENT, CHILD, ALONE)
    assert world.outstanding() == ([PARENT, CHILD, GRANDCHILD], [])
    world.weights(CHILD)
    assert world.outstanding() == ([GRANDCHILD], [])


def test_a_child_needs_the_iteration_it_starts_from(world):
    world.receipts(PARENT, GRANDCHILD, ALONE)
    child, parent = world.plan.segments[CHILD], world.plan.segments[PARENT]
    assert 0 < child.parent_iteration < parent.iterations
    world.weights(PARENT)  # the end, which the child does not start from
    assert world.outstanding() == ([PARENT, CHILD], [])
    world.weights(PARENT, child.parent_iteration, optimizer=True)
    assert world.outstanding() == ([CHILD], [])


def test_a_child_that_keeps_the_optimizer_needs_its_state(world):
    world.receipts(PARENT, GRANDCHILD, ALONE)
    world.weights(PARENT, world.plan.segments[CHILD].parent_iteration)
    assert world.outstanding() == ([PARENT, CHILD], [])


def test_weights_of_another_identity_do_not_count(world):
    world.receipts(PARENT, CHILD, ALONE)
    world.weights(CHILD)
    world.plan = make_plan(parent={"schedule": COSINE | {"eta_min": 2e-5}})
    world.receipts(PARENT, CHILD)
    assert world.outstanding() == ([PARENT, CHILD, GRANDCHILD], [])


def test_an_evaluation_needs_weights_and_a_current_one_does_not(world):
    world.receipts()
    assert world.outstanding(ALONE) == ([ALONE], [ALONE])
    world.weights(ALONE)
    assert world.outstanding(ALONE) == ([], [ALONE])
    world.evaluation(ALONE)
    assert world.outstanding(ALONE) == ([], [])


def test_a_current_evaluation_outlives_the_weights(world):
    world.receipts()
    world.evaluation(GRANDCHILD)
    assert world.outstanding(GRANDCHILD) == ([], [])


def test_an_evaluation_of_gone_weights_trains_again_all_that_they_start_from(world):
    world.receipts()
    assert world.outstanding(GRANDCHILD) == ([PARENT, CHILD, GRANDCHILD], [GRANDCHILD])


def test_an_evaluation_is_stale_when_its_run_is(world):
    world.receipts()
    world.evaluation(ALONE)
    world.plan = make_plan(alone={"iterations": 21000})
    assert world.outstanding(ALONE) == ([ALONE], [ALONE])


def test_a_merge_needs_both_of_its_runs(world):
    world.receipts()
    merge = "made_up/merge/seed-0"
    assert world.outstanding(merge) == ([PARENT, ALONE], [merge])
    world.weights(PARENT)
    assert world.outstanding(merge) == ([ALONE], [merge])
    world.weights(ALONE)
    assert world.outstanding(merge) == ([], [merge])
    world.evaluation(merge)
    assert world.outstanding(merge) == ([], [])


def test_finished_needs_receipt_and_every_checkpoint(world):
    segment = world.plan.segments[PARENT]
    kept = world.plan.checkpoints[PARENT]
    assert sorted(kept.values()) == [False, True]
    assert world.store.finished(segment, kept) is None
    write(world.store.folder(segment) / "receipt.json", make_receipt(segment))
    assert world.store.finished(segment, kept) is None
    for iteration, optimizer in kept.items():
        world.weights(PARENT, iteration, optimizer)
    assert world.store.finished(segment, kept) == make_receipt(segment)


# -- receipts


def test_receipt_reads_back_the_same(world):
    segment = world.plan.segments[CHILD]
    path = receipt_path(world.results, "smoke", CHILD)
    assert path == world.results / "smoke" / "runs" / "made_up" / "child" / "seed-0" / "receipt.json"
    world.receipts(CHILD)
    assert read_receipt(path) == make_receipt(segment)
    assert read_receipt(path).segment.identity == segment.identity
    assert is_current(path, segment.identity) and not is_current(path, "0" * 64)
    before = path.read_bytes()
    world.receipts(CHILD)
    assert path.read_bytes() == before


def refused(action):
    with pytest.raises(UserError) as caught:
        action()
    return str(caught.value)


@pytest.mark.parametrize("read", [read_receipt, read_evaluation])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"schema_version": 2}', "schema_version is 2"),
        ('{"schema_version": "1"}', "schema_version is '1'"),
        ("{}", "schema_version is None"),
        ("[]", "schema_version is None"),
        ("3", "schema_version is None"),
        ('{"schema_version": 1', "not valid JSON"),
        ("", "not valid JSON"),
        ("\udcff", "not valid JSON"),
        ('{"schema_version": 1, "identity": "x"}', "wrong"),
        ('{"schema_version": 1, "surprise": 1}', ""),
    ],
)
def test_unreadable_records_are_refused_with_their_path(tmp_path, read, content, said):
    path = tmp_path / "receipt.json"
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    text = refused(lambda: read(path))
    assert str(path) in text and said in text


def test_missing_record_is_refused_with_its_path(tmp_path):
    path = tmp_path / "receipt.json"
    assert str(path) in refused(lambda: read_receipt(path))
    assert not is_current(path, "0" * 64)


def test_unknown_key_in_a_receipt_is_refused(world):
    world.receipts(ALONE)
    path = receipt_path(world.results, "smoke", ALONE)
    write_json(path, read_json(path) | {"loses": 1})
    assert "'loses'" in refused(lambda: read_receipt(path))


@pytest.mark.parametrize("content", ["[]", "3", "null", '"text"'])
def test_json_that_is_no_receipt_is_not_current(tmp_path, content):
    path = tmp_path / "receipt.json"
    path.write_text(content)
    assert not is_current(path, "0" * 64)


@pytest.mark.parametrize("content", ["", '{"schema_version": 1', "\x00\x00"])
def test_broken_receipt_is_reported_and_not_trained_over(world, content):
    world.receipts()
    path = receipt_path(world.results, "smoke", ALONE)
    path.write_text(content)
    text = refused(world.outstanding)
    assert str(path) in text and "not valid JSON" in text


def test_receipt_of_another_version_is_stale(world):
    world.receipts()
    path = receipt_path(world.results, "smoke", ALONE)
    write_json(path, read_json(path) | {"schema_version": 0})
    assert world.outstanding() == ([ALONE], [])


# -- files


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_whole_file_leaves_nothing_when_the_body_raises(tmp_path):
    with pytest.raises(ZeroDivisionError), whole_file(tmp_path / "new.json") as aside:
        aside.write_text("half of")
        raise ZeroDivisionError
    assert names(tmp_path) == []


def test_whole_file_leaves_the_old_when_the_body_raises(tmp_path):
    path = tmp_path / "old.json"
    path.write_text("old")
    for error in (RuntimeError, KeyboardInterrupt):
        with pytest.raises(error), whole_file(path) as aside:
            aside.write_text("half of the new")
            assert path.read_text() == "old"
            raise error
        assert path.read_text() == "old" and names(tmp_path) == ["old.json"]


def test_whole_file_replaces_and_makes_folders(tmp_path):
    path = tmp_path / "deep" / "down" / "figure.svg"
    for text in ("one", "two"):
        with whole_file(path) as aside:
            assert aside.parent == path.parent and aside.suffix == ".svg" and aside != path
            aside.write_text(text)
        assert path.read_text() == text and names(path.parent) == ["figure.svg"]


def test_whole_file_needs_something_written(tmp_path):
    with pytest.raises(FileNotFoundError), whole_file(tmp_path / "nothing"):
        pass
    assert names(tmp_path) == []


def test_write_json_refuses_what_is_no_number_and_leaves_the_old(tmp_path):
    path = tmp_path / "values.json"
    write_json(path, {"b": 1, "a": [0.1, "ü"]})
    assert path.read_text(encoding="utf-8") == '{\n "a": [\n  0.1,\n  "ü"\n ],\n "b": 1\n}\n'
    for value in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="JSON compliant"):
            write_json(path, {"loss": value})
    assert json.loads(path.read_text(encoding="utf-8")) == {"a": [0.1, "ü"], "b": 1}
    assert names(tmp_path) == ["values.json"]


def test_text_has_unix_line_ends(tmp_path):
    write_text(tmp_path / "a.txt", "one\ntwo\n")
    assert (tmp_path / "a.txt").read_bytes() == b"one\ntwo\n"


def test_digest_is_of_the_value_and_not_of_its_order():
    assert canonical_json({"b": [1, 0.1], "a": "ü"}) == '{"a":"ü","b":[1,0.1]}'
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1}) != digest({"a": 1, "b": 3})
    with pytest.raises(ValueError, match="JSON compliant"):
        digest(float("nan"))
