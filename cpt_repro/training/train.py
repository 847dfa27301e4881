"""Trains the runs of a plan: each training once, whatever it is called; each may fail by itself."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import nullcontext
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

from cpt_repro.errors import StorageError, UserError
from cpt_repro.files import locked, write_json
from cpt_repro.planning.plan import Plan, PlannedRun
from cpt_repro.records.lookup import Records
from cpt_repro.records.receipts import Receipt, identity_in, write_record
from cpt_repro.training.store import Store, check_room

if TYPE_CHECKING:
    from cpt_repro.training.corpora import Corpora

Say = Callable[[str], None]


def train_runs(
    plan: Plan, records: Records, runs: list[PlannedRun], store: Store, say: Say, again: bool = False
) -> None:
    """Trains `runs` in order and publishes their receipts; what is finished in the store is only published.

    `again`: what is finished is trained too, to complete its curves. A run that fails does not stop the
    others, but those that start from it; failures are raised together. `records` stays as it was.
    """
    # Of several ranks, which all come through here, the first one locks and writes.
    first, several = os.environ.get("RANK", "0") == "0", os.environ.get("WORLD_SIZE", "1") != "1"
    corpora, trainings, failed = cache(partial(_corpora, plan)), {}, {}
    for run in runs:
        trainings.setdefault(run.identity, run)
    for number, (identity, run) in enumerate(trainings.items(), 1):
        start = run.training.start
        if start and start.parent in failed:
            failed[identity] = f"{run.id}: what it starts from failed"
            continue
        say_so = partial(_say_of, say, f"[{number}/{len(trainings)}] {run.id}: ")
        # Two calls at once, in one folder or with one store: the second waits, and then finds it done.
        busy = partial(say_so, "another process trains it; waiting")
        with store.hold(identity, busy) if first else nullcontext():
            try:
                receipt = None if again else _finished(plan, store, identity, several)
                receipt = receipt or _train(plan, run, store, corpora, say_so)
            except StorageError:
                raise
            except UserError as error:
                say_so(f"FAILED. {error}")
                for path in _failures(records, identity) if first else ():
                    write_json(path, {"identity": identity, "why": str(error)})
                if several:  # the others may wait for this one, and end with it
                    raise
                failed[identity] = f"{run.id}: {error}"
                continue
            if first:
                _publish(records, run, receipt, store, say_so)
    if failed:
        what = f"{len(failed)} of {len(trainings)} trainings failed. {' '.join(failed.values())}"
        raise UserError(what, do="Mend the cause; run again.")


def _say_of(say: Say, label: str, text: str) -> None:
    say(label + text)


def _corpora(plan: Plan) -> Corpora:
    from cpt_repro.training.corpora import Corpora

    return Corpora(plan, check=os.environ.get("LOCAL_RANK", "0") == "0")


def _finished(plan: Plan, store: Store, identity: str, several: bool) -> Receipt | None:
    """The receipt of a training finished in the store; what the first of several ranks sees counts."""
    if not several:
        return store.finished(identity, plan.kept(identity))
    from cpt_repro.training.composer import join_ranks, of_first_rank

    join_ranks(plan.scale.device)
    return of_first_rank(lambda: store.finished(identity, plan.kept(identity)))


def _train(plan: Plan, run: PlannedRun, store: Store, corpora: Callable[[], Corpora], say: Say) -> Receipt:
    check_room(plan, [run], store)
    # Composer and torch take seconds to import: only where there is something to train.
    from cpt_repro.training.composer import Job, train

    training = run.training
    say(f"{training.iterations} iterations, {training.tokens:,} tokens")
    job = Job.of(plan, run, lambda done: say(f"{done}/{training.iterations}"))
    receipt = train(job, corpora(), store)
    finals = ", ".join(f"{corpus} {losses.final.loss:.3f}" for corpus, losses in receipt.losses.items())
    say(f"{finals}; {receipt.measured.tokens_per_second:,.0f} tokens/s")
    return receipt


def _failures(records: Records, identity: str) -> list[Path]:
    """Where a failure is noted: under every name of the training."""
    return [records.place_of(run.id) / "failure.json" for run in records.plan.trainings[identity]]


def _publish(records: Records, run: PlannedRun, receipt: Receipt, store: Store, say: Say) -> None:
    """Puts a receipt where its training's is, or is to be; what lies there of another training is kept."""
    identity, plan = run.identity, records.plan
    store.name(identity, (name.id for name in plan.trainings[identity]))
    with locked(store.root / "publishing.lock"):
        records = Records(plan)  # as they are now: other processes publish too
        path = records.receipt_path(run)
        if before := records.receipt(run):
            receipt = _with_what_was_known(receipt, before, say)
        else:
            _make_way(records, path.parent)
        write_record(path, receipt)
    for failure in _failures(records, identity):
        failure.unlink(missing_ok=True)


def _with_what_was_known(receipt: Receipt, before: Receipt, say: Say) -> Receipt:
    """The receipt with the losses on further corpora that an earlier one of the same weights has."""
    both = receipt.checkpoints.keys() & before.checkpoints.keys()
    if any(receipt.checkpoints[iteration] != before.checkpoints[iteration] for iteration in both):
        where = ", ".join(dict.fromkeys((before.environment["hardware"], receipt.environment["hardware"])))
        say(f"its weights are not, bit for bit, those of the receipt that was there ({where})")
        return receipt
    return receipt.model_copy(update={"losses": before.losses | receipt.losses})


def _make_way(records: Records, place: Path, seen: frozenset[Path] = frozenset()) -> None:
    """Moves records of another training of the plan, which lie in a run's place, to that one's own."""
    other = identity_in(place / "receipt.json")
    if other not in records.plan.trainings:
        return
    own = records.place_of(records.plan.trainings[other][0].id)
    if own == place or own in seen:
        return
    _make_way(records, own, seen | {place})
    own.mkdir(parents=True, exist_ok=True)
    for name in ("receipt.json", "losses.json", "evaluation.json"):
        if identity_in(place / name) == other:
            os.replace(place / name, own / name)
