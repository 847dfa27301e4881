"""SIGKILL of training at random moments: what comes out is what an untouched run gives, bit for bit.

Five kills or so by default; `make torture` sets CPT_REPRO_KILLS to 200 or more. Training runs in forked
children of this process, which has paid for the imports; a child tells through a pipe which phase it is in,
so that kills fall into every phase and not only into the longest.
"""

import contextlib
import os
import random
import shutil
import signal
import time

import pytest
from short_runs import SHORT, World, numbers

from cpt_repro.errors import UserError
from cpt_repro.files import file_digest

pytestmark = pytest.mark.slow
KILLS = int(os.environ.get("CPT_REPRO_KILLS", "5"))
#: Phases that a child tells, and how many of them may pass before the kill at most.
PHASES = {"start": 1, "step": 25, "evaluation": 6, "saving": 5, "naming": 5, "weights": 2, "receipt": 1}
#: A state every other iteration.
OFTEN = SHORT | {"save_every": 20}
FAILED, CRASHED = 3, 4
CASES = {
    "replay": {"run": "pile--sp/replay-0.05"},
    "several epochs": {"run": "pile--german/warmup-0.02", "few": True},
    "optimizer and data position kept": {"run": "sp-3x100/infinite-cosine/split-1-annealed"},
    "changing number of data workers": {"run": "pile--sp-domains/stage-2", "workers": (0, 1, 3)},
    "a data worker killed": {"run": "pile--sp/warmup-0.02", "workers": (1, 2), "worker": True},
}


class Few:
    """The first sequences of a domain, so that a short run reads them several times over."""

    def __init__(self, sequences, count=60):
        self._sequences, self._count = sequences, min(count, len(sequences))

    def __len__(self):
        return self._count

    def take(self, indices):
        assert max(indices) < self._count
        return self._sequences.take(indices)


def fit(world, name, workers=0, few=False):
    corpora = world.corpora
    if few:
        whole = corpora.sequences
        corpora.sequences = lambda corpus, domain: Few(whole(corpus, domain))
    return world.fit(name, corpora, workers=workers)


def announce(pipe):
    """Makes the phases of training tell that they begin."""
    from cpt_repro.training import composer, store

    def wrap(owner, name, phase):
        whole, letter = getattr(owner, name), bytes([list(PHASES).index(phase)])

        def telling(*arguments, **named):
            os.write(pipe, letter)
            return whole(*arguments, **named)

        setattr(owner, name, telling)

    wrap(composer, "adamw", "start")
    wrap(composer.CausalLM, "loss", "step")
    wrap(composer.Measure, "_take", "evaluation")
    wrap(composer, "save_checkpoint", "saving")
    wrap(store, "whole_file", "naming")
    wrap(composer, "save_model", "weights")
    wrap(store, "write_record", "receipt")


def attempt(rng, train, target=None, worker=False):
    """Trains in a child; kills it (or a reader of its) in the phase `target`. True when it finished."""
    reads, writes = os.pipe()
    child = os.fork()
    if child == 0:
        code = CRASHED
        try:
            os.close(reads)
            announce(writes)
            train()
            code = 0
        except UserError as error:
            code = FAILED if worker and "process that reads data" in str(error) else CRASHED
        finally:
            os._exit(code)
    os.close(writes)
    wanted, left = (list(PHASES).index(target), rng.randint(1, PHASES[target])) if target else (None, 0)
    with os.fdopen(reads, "rb", buffering=0) as pipe:
        while letter := pipe.read(1):
            left -= letter[0] == wanted
            if left == 0 and letter[0] == wanted:
                time.sleep(rng.random() * 0.02)
                for victim in children(child)[:1] if worker else [child]:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(victim, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    code = None if killed else os.WEXITSTATUS(status)
    assert killed or code in (0, FAILED), f"the child ended with {code}"
    return code == 0


def children(pid):
    with open(f"/proc/{pid}/task/{pid}/children") as listed:
        return [int(child) for child in listed.read().split()]


@pytest.fixture(scope="module")
def untouched(built, tmp_path_factory):
    return World(built, tmp_path_factory.mktemp("untouched"), **OFTEN)


@pytest.mark.parametrize("case", CASES)
def test_killed_runs_end_with_the_same_bits(case, built, untouched, tmp_path, faults):
    declared = CASES[case]
    name, few, worker = declared["run"], declared.get("few", False), declared.get("worker", False)
    run, store = untouched.run(name), untouched.store
    ancestors = [ancestor.id.removesuffix("/seed-0") for ancestor in untouched.plan.lineage(run.id)[:-1]]
    for each in (*ancestors, name):
        own = untouched.run(each).identity
        if store.finished(own, untouched.plan.kept(own)) is None:
            fit(untouched, each, few=few and each is name)
    expected = numbers(store.receipt(run.identity))
    rng = random.Random(f"{case} {KILLS}")
    phases = ["step", "evaluation"] if worker else list(PHASES)
    kills = done = 0
    while kills < KILLS / len(CASES):
        own = World(built, tmp_path / str(done), **OFTEN)
        own.borrow(untouched, *ancestors)
        # Now and then once, mostly three times and more in one run.
        planned, finished = rng.randint(1, 5), False
        while not finished:
            workers, target = (
                rng.choice(declared.get("workers", (0,))),
                rng.choice(phases) if planned > 0 else None,
            )
            finished = attempt(
                rng, lambda own=own, workers=workers: fit(own, name, workers, few), target, worker
            )
            planned -= 1
            kills += not finished
        again = own.store.receipt(run.identity)
        assert numbers(again) == expected
        for iteration, digest in again.checkpoints.items():
            assert file_digest(own.store.weights(run.identity, iteration) / "model.safetensors") == digest
        assert not [
            path for path in own.folder(name).rglob("*") if "aside" in path.name or "resume" in path.name
        ]
        shutil.rmtree(tmp_path / str(done))
        done += 1
    faults(f"SIGKILL while training: {case}", kills, f"{done} runs ended with the bits of an untouched run")
