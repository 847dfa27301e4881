"""Losses along a training, and of weights that are kept: what is measured later needs no training and
changes none.
"""

import shutil
from dataclasses import replace

import pytest
import torch
from short_runs import SHORT

from cpt_repro.errors import UserError
from cpt_repro.files import read_json, write_json
from cpt_repro.planning.plan import ValidationPlan
from cpt_repro.training.measure import Curves, measure_kept

pytestmark = pytest.mark.slow
CHILD = "pile--sp/replay-0.05"
MORE = SHORT["validation"].model_copy(update={"sequences": 17})


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def measure(own, name):
    measure_kept(own.plan, own.records, own.run(name), own.store, own.corpora, own.said.append)


def with_another_corpus(own, name, corpus):
    """As if the run's declaration named one more corpus to validate on: its identity stays what it is."""
    run, before = own.run(name), own.run(name).identity
    validation = replace(run.validation, corpora=(*run.validation.corpora, corpus))
    own.plan.runs[run.id] = named = replace(run, validation=validation)
    own.plan.trainings[before] = [named if one is run else one for one in own.plan.trainings[before]]
    assert own.run(name).identity == before


def test_a_further_corpus_is_measured_on_kept_weights(trained, world):
    own = world()
    own.borrow(trained, "pile", CHILD)
    own.train("pile", CHILD)
    weights, own = contents(trained.store.root), world()
    with_another_corpus(own, CHILD, "german")
    run = own.run(CHILD)
    before = own.records.receipt(run)
    assert own.records.to_measure(run) == ["german"]
    measure(own, CHILD)
    later = own.records.later(run).losses
    assert list(later) == ["german"] and [i for i, _ in later["german"].curve] == [29]
    final, of_sequences = (
        later["german"].final,
        torch.tensor(later["german"].of_sequences, dtype=torch.float64),
    )
    assert (final.evaluations, final.stderr) == (1, 0) and final.loss == later["german"].curve[-1][1]
    assert final.loss == pytest.approx(of_sequences.mean().item(), abs=1e-5) and len(of_sequences) == 13
    assert final.noise == pytest.approx((of_sequences.std() / 13**0.5).item(), rel=1e-3)
    assert own.records.to_measure(run) == [] and own.records.incomplete_curves(run) == ["german"]
    # Nothing was trained, and no weight or receipt was touched.
    assert own.records.receipt(run) == before and contents(trained.store.root) == weights
    written, said = own.records.later_path(run).stat().st_mtime_ns, len(own.said)
    measure(own, CHILD)
    assert own.records.later_path(run).stat().st_mtime_ns == written and len(own.said) == said


def test_more_sequences_are_measured_as_training_would_have(world):
    """At every kept iteration, bit for bit; what was measured before stays beside it."""
    trunk, asked = "sp-3x100/infinite-cosine/split-1", world("asked", validation=MORE)
    expected = asked.train(trunk)[0].losses
    world().train(trunk)
    own = world(validation=MORE)
    run = own.run(trunk)
    assert own.records.to_measure(run) == ["pile", "sp"]
    measure(own, trunk)
    path, later = own.records.later_path(run), own.records.later(run).losses
    for corpus, losses in later.items():
        assert dict(losses.curve) == {i: loss for i, loss in expected[corpus].curve if i in (8, 10)}
        assert losses.of_sequences == expected[corpus].of_sequences and losses.sequences == 17
        assert own.records.losses(run, corpus) == losses
    raw = read_json(path)
    raw["losses"]["of-before"] = raw["losses"].pop("sp")
    write_json(path, raw)
    measure(own, trunk)
    assert own.records.later(run).losses == later | {"of-before": later["sp"]}


@pytest.mark.parametrize("damage", ["altered", "missing"])
def test_altered_and_missing_weights_are_not_measured(trained, world, damage):
    own = world(validation=MORE)
    shutil.copytree(trained.folder("pile"), own.folder("pile"))
    own.train("pile")
    path = own.model("pile") / "model.safetensors"
    path.unlink() if damage == "missing" else path.write_bytes(path.read_bytes()[:-1] + b"!")
    with pytest.raises(UserError, match=f"the weights are {damage}"):
        measure(own, "pile")
    assert own.records.later(own.run("pile")) is None


def test_training_again_completes_the_curves(trained, world):
    own = world(validation=MORE)
    shutil.copytree(trained.folder("pile"), own.folder("pile"))
    before = own.train("pile")[0]
    run, path = own.run("pile"), own.records.receipt_path(own.run("pile"))
    assert own.records.incomplete_curves(run) == ["pile", "sp", "german"]
    raw = read_json(path)
    raw["losses"]["not-asked-for"] = raw["losses"]["sp"]
    write_json(path, raw)
    after = own.train("pile", again=True)[0]
    assert after.checkpoints == before.checkpoints and own.records.incomplete_curves(run) == []
    assert {corpus: losses.sequences for corpus, losses in after.losses.items()} == {
        "pile": 17, "sp": 17, "german": 17, "not-asked-for": 13,
    }  # fmt: skip
    assert not [line for line in own.said if "bit for bit" in line]
    # The receipt that was there was of other weights, say of another machine.
    raw["checkpoints"]["29"] = "0" * 64
    write_json(path, raw)
    assert set(own.train("pile")[0].losses) == {"pile", "sp", "german"}
    assert "not, bit for bit, those of the receipt that was there" in own.said[-1]


def test_what_is_measured_decides_no_weight(trained, world):
    few = world("few", validation=SHORT["validation"].model_copy(update={"sequences": 2, "every": 300.0}))
    receipt, usual = few.train("pile")[0], trained.records.receipt(trained.run("pile"))
    assert receipt.identity == usual.identity and receipt.checkpoints == usual.checkpoints
    assert len(receipt.losses["pile"].curve) < len(usual.losses["pile"].curve)


def test_what_is_measured_may_change_between_an_interruption_and_going_on(world, killed_at):
    own = world()
    killed_at(own, "sp", 20)
    own = world()
    with_another_corpus(own, "sp", "german")
    receipt = own.fit("sp")
    assert receipt.measured.resumed_at == 18
    due = own.run("sp").validation.evaluations
    assert [i for i, _ in receipt.losses["sp"].curve] == list(due)
    assert [i for i, _ in receipt.losses["german"].curve] == [i for i in due if i > 18]
    # Another number of sequences: points that are not comparable are left out.
    first = Curves(ValidationPlan(("pile",), 5, (0, 1), (1,)), own.corpora)
    first.take(0, 1e-3, lambda tokens: torch.ones(len(tokens), dtype=torch.float64))
    second = Curves(ValidationPlan(("pile",), 6, (0, 1), (1,)), own.corpora)
    second.load_state_dict(first.state_dict())
    second.take(1, 1e-3, lambda tokens: torch.ones(len(tokens), dtype=torch.float64))
    assert second.losses()["pile"].curve == ((1, 1.0),) and second.rates == [(0, 1e-3), (1, 1e-3)]


def test_few_sequences_along_the_way_and_all_at_the_start_and_in_the_closing_evaluations(world):
    """The curve is of the same few throughout; start and final loss are of all."""
    own, asked = world(), []
    curves = Curves(ValidationPlan(("pile",), 5, (0, 1, 2, 3, 4), (3, 4), along=2), own.corpora)

    def of_sequences(tokens):
        asked.append(len(tokens))
        return torch.arange(len(tokens), dtype=torch.float64) + len(asked)

    for iteration in range(5):
        curves.take(iteration, 1e-3, of_sequences)
    losses = curves.losses()["pile"]
    assert asked == [5, 2, 2, 5, 5] and (losses.sequences, losses.along) == (5, 2)
    assert losses.curve == ((0, 1.5), (1, 2.5), (2, 3.5), (3, 4.5), (4, 5.5))
    assert (losses.start, losses.final.loss, losses.final.evaluations) == (3.0, 6.5, 2)
    assert losses.of_sequences == (5.0, 6.0, 7.0, 8.0, 9.0)
    state = curves.state_dict()
    other = Curves(ValidationPlan(("pile",), 5, (0, 1, 2, 3, 4), (3, 4), along=3), own.corpora)
    other.load_state_dict(state)  # measured otherwise, so left out
    other.take(4, 1e-3, of_sequences)
    assert len(other.losses()["pile"].curve) == 1
