"""Training a bundle: several segments in one process, so that imports are paid once; each may fail by itself."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

from cpt_repro.errors import StorageError, UserError
from cpt_repro.files import locked, write_json
from cpt_repro.planning.plan import Plan, Segment
from cpt_repro.records.receipts import receipt_path, write
from cpt_repro.training.store import Store, check_room


def train_segments(
    plan: Plan, segments: list[Segment], data: Path, results: Path, store: Store, say: Callable[[str], None]
) -> None:
    """Trains `segments` in order and publishes their receipts; what is in the store already is not trained again.

    A segment that fails does not stop the others, except those that start from it. All failures are raised together.
    """
    corpora = None
    # Of several ranks, which all come through here, the first one locks and writes.
    first = os.environ.get("RANK", "0") == "0"
    failed: dict[str, str] = {}
    for number, segment in enumerate(segments, 1):
        label = f"[{number}/{len(segments)}] {segment.id}"
        kept = plan.checkpoints[segment.id]
        published = receipt_path(results, plan.scale.name, segment.id)
        failure = published.with_name("failure.json")
        # Two calls at once, in one folder or with one store: the second waits, and then finds it done.
        lock, waits = (
            store.folder(segment).with_suffix(".lock"),
            f"{label}: another process trains it; waiting",
        )
        with locked(lock, lambda waits=waits: say(waits)) if first else nullcontext():
            receipt = store.finished(segment, kept)
            if receipt is None:
                if segment.parent in failed:
                    failed[segment.id] = f"its parent {segment.parent} failed"
                    continue
                check_room(plan, [segment], store)
                # Composer and torch take seconds to import: only where there is something to train.
                from cpt_repro.training.trainer import Corpora, train

                corpora = corpora or Corpora(data, plan.scale)
                parent = plan.segments[segment.parent] if segment.parent else None
                every = plan.scale.iterations(plan.scale.save_every, segment.batch_sequences)
                say(f"{label}: {segment.iterations} iterations, {segment.tokens:,} tokens")

                def progress(done: int, label: str = label, total: int = segment.iterations) -> None:
                    say(f"{label}: {done}/{total}")

                try:
                    receipt = train(
                        segment,
                        parent,
                        corpora,
                        store,
                        kept,
                        save_every=every,
                        progress=progress if every else None,
                        device=plan.scale.device,
                        execution=plan.scale.run_as(segment.model_name),
                        workers=plan.scale.loader_workers,
                    )
                except StorageError:
                    raise
                except UserError as error:
                    failed[segment.id] = str(error)
                    say(f"{label}: FAILED. {error}")
                    if first:
                        write_json(failure, {"identity": segment.identity, "why": str(error)})
                    continue
                losses = ", ".join(f"{corpus} {final.loss:.3f}" for corpus, final in receipt.final.items())
                say(f"{label}: {losses}; {receipt.measured['tokens_per_second']:,} tokens/s")
        if first:
            write(published, receipt)
            failure.unlink(missing_ok=True)
    if failed:
        listing = " ".join(f"{name}: {why}" for name, why in failed.items())
        raise UserError(
            f"{len(failed)} of {len(segments)} segments failed. {listing}", do="Mend the cause; run again."
        )
