"""SIGKILL of training at random moments: what comes out is what an untouched run gives, bit for bit.

About ten kills by default; `make torture` sets CPT_REPRO_KILLS to 200 or more. Training runs in forked children of
this process, which has paid for the imports; a child tells through a pipe which phase it is in, so that kills fall into
every phase and not only into the longest.
"""

import contextlib
import os
import random
import shutil
import signal
import time

import pytest

from cpt_repro.declarations.scale import load_scale
from cpt_repro.errors import UserError
from cpt_repro.files import file_digest
from cpt_repro.planning.plan import Plan
from cpt_repro.records.receipts import read_receipt
from cpt_repro.training.store import SavedStates, Store

PAPER = "ibrahim2024/405m"
KILLS = int(os.environ.get("CPT_REPRO_KILLS", "10"))
SAVE_EVERY = 25
#: Phases that a child tells, and how many of them may pass before the kill at most.
PHASES = {"start": 1, "step": 120, "evaluation": 8, "saving": 5, "naming": 5, "weights": 2, "receipt": 1}
FAILED, CRASHED = 3, 4


@pytest.fixture(scope="module")
def world(smoke_data, tmp_path_factory):
    """Plan, data, and a store that holds the untouched runs."""
    from cpt_repro.training.trainer import Corpora

    plan = Plan(load_scale("smoke"))
    store = Store("smoke", tmp_path_factory.mktemp("untouched"))
    return plan, Corpora(smoke_data), store


def _segment(plan, name):
    return plan.segments[f"{PAPER}/{name}/seed-0"]


class Few:
    """The first sequences of a domain, so that a short run reads them several times over."""

    def __init__(self, sequences, count=400):
        self._sequences, self._count = sequences, min(count, len(sequences))

    def __len__(self):
        return self._count

    def take(self, indices):
        assert max(indices) < self._count
        return self._sequences.take(indices)


def _train(plan, corpora, store, segment, workers=0, few=False):
    from cpt_repro.training import trainer

    if few:
        corpora = trainer.Corpora(corpora.root)
        whole = corpora.sequences
        corpora.sequences = lambda corpus, domain: Few(whole(corpus, domain))
    parent = plan.segments[segment.parent] if segment.parent else None
    kept = plan.checkpoints[segment.id]
    return trainer.train(segment, parent, corpora, store, kept, save_every=SAVE_EVERY, workers=workers)


def _announce(pipe):
    """Makes the phases of training tell that they begin."""
    from composer import Trainer

    from cpt_repro.training import store, trainer

    def wrap(owner, name, phase):
        whole, letter = getattr(owner, name), bytes([list(PHASES).index(phase)])

        def told(*arguments, **named):
            os.write(pipe, letter)
            return whole(*arguments, **named)

        setattr(owner, name, told)

    wrap(trainer, "adamw", "start")
    wrap(trainer.CausalLM, "loss", "step")
    wrap(trainer.Losses, "_take", "evaluation")
    wrap(Trainer, "save_checkpoint", "saving")
    wrap(store, "write_json", "naming")
    wrap(trainer, "save_model", "weights")
    wrap(trainer, "write", "receipt")


def _attempt(rng, train, target=None, worker=False):
    """Trains in a child; kills it (or a worker of its) in the phase `target`. True when the child finished."""
    reads, writes = os.pipe()
    child = os.fork()
    if child == 0:
        code = CRASHED
        try:
            os.close(reads)
            _announce(writes)
            train()
            code = 0
        except UserError as error:
            code = FAILED if worker and "process that reads data" in str(error) else CRASHED
        finally:
            os._exit(code)
    os.close(writes)
    wanted, left = (list(PHASES).index(target), rng.randint(1, PHASES[target])) if target else (None, 0)
    with os.fdopen(reads, "rb", buffering=0) as pipe:
        while told := pipe.read(1):
            left -= told[0] == wanted
            if left == 0 and told[0] == wanted:
                time.sleep(rng.random() * 0.02)
                for victim in _children(child)[:1] if worker else [child]:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(victim, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    code = None if killed else os.WEXITSTATUS(status)
    assert killed or code in (0, FAILED), f"the child ended with {code}"
    return code == 0


def _children(pid):
    path = f"/proc/{pid}/task/{pid}/children"
    return [int(child) for child in open(path).read().split()]


CASES = {
    "replay": {"run": "pile--sp/replay-0.05"},
    "several epochs": {"run": "pile--german/warmup-0.02", "few": True},
    "optimizer and data position kept": {"run": "sp-3x100/infinite-cosine/split-1-annealed"},
    "changing number of data workers": {"run": "pile--sp-domains/stage-2", "workers": (0, 1, 3)},
    "a data worker killed": {"run": "pile--sp/warmup-0.02", "workers": (1, 2), "worker": True},
}


@pytest.mark.parametrize("case", CASES)
def test_killed_runs_end_with_the_same_bits(case, world, tmp_path, faults):
    plan, corpora, untouched = world
    declared = CASES[case]
    segment, few = _segment(plan, declared["run"]), declared.get("few", False)
    for ancestor in plan.lineage(segment.id):
        if untouched.finished(ancestor, plan.checkpoints[ancestor.id]) is None:
            _train(plan, corpora, untouched, ancestor, few=few and ancestor is segment)
    expected = read_receipt(untouched.folder(segment) / "receipt.json").model_dump(exclude={"measured"})
    rng = random.Random(f"{case} {KILLS}")
    phases = ["step", "evaluation"] if declared.get("worker") else list(PHASES)
    kills = done = 0
    while kills < KILLS / len(CASES):
        store = Store("smoke", tmp_path / str(done))
        for ancestor in plan.lineage(segment.id)[:-1]:
            folder = store.folder(ancestor)
            folder.parent.mkdir(parents=True, exist_ok=True)
            folder.symlink_to(untouched.folder(ancestor), target_is_directory=True)
        # Now and then once, mostly three times and more in one run.
        planned, finished = rng.randint(1, 5), False
        while not finished:
            workers = rng.choice(declared.get("workers", (0,)))
            target = rng.choice(phases) if planned > 0 else None
            finished = _attempt(
                rng,
                lambda store=store, workers=workers: _train(plan, corpora, store, segment, workers, few),
                target,
                worker=declared.get("worker", False),
            )
            planned -= 1
            kills += not finished
        again = read_receipt(store.folder(segment) / "receipt.json")
        assert again.model_dump(exclude={"measured"}) == expected
        for iteration, digest in again.checkpoints.items():
            assert file_digest(store.weights(segment, iteration) / "model.safetensors") == digest
        assert not [p for p in store.folder(segment).rglob("*") if "aside" in p.name or "resume" in p.name]
        assert SavedStates(store.folder(segment), {}).newest() == (0, None)
        shutil.rmtree(tmp_path / str(done))
        done += 1
    faults(f"SIGKILL while training: {case}", kills, f"{done} runs ended with the bits of an untouched run")
