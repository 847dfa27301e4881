"""Made-up receipts for tests of figures and tables: smooth curves from a formula, no training behind them."""

from __future__ import annotations

import math
from pathlib import Path

from cpt_repro.planning.plan import Plan, Segment
from cpt_repro.records.receipts import Evaluation, FinalLoss, Receipt, evaluation_path, receipt_path, write

ASYMPTOTE = {"pile": 2.2, "sp": 2.5, "german": 1.3}
START = {"pile": 2.3, "sp": 2.75, "german": 2.6}


def _level(segment: Segment, corpus: str, iteration: int) -> float:
    """A loss that looks like one: it falls from scratch; later, old data is forgotten with rate and kept by replay."""
    done = iteration / segment.schedule_iterations + (0.86 if "annealed" in segment.name else 0)
    rate = segment.schedule(iteration, segment.schedule_iterations) / (3e-4 * segment.model.eta_factor)
    size = 0.25 if segment.model_name == "10b" else 0.0
    wiggle = 0.004 * math.sin(0.9 * iteration * (1 + 0.01 * len(segment.name)) + 7 * segment.seed)
    if segment.parent is None or "sp-3x100" in segment.name:
        late = segment.name.count("split-2") + 2 * segment.name.count("split-3")
        fall = 4 * math.exp(-40 * (done + late)) + 0.6 / (1 + 8 * (done + late))
        foreign = 0.4 if corpus != "pile" and "+" not in segment.name and segment.name.endswith("pile") else 0
        return ASYMPTOTE[corpus] - size + fall + 0.08 * rate + foreign + wiggle
    shift = 4.0 if "german" in segment.name else 0.7
    held = 1 / (1 + 40 * segment.replay_fraction)
    same = 0.15 if "pile--pile" in segment.name else 1.0
    started = segment.schedule(0, segment.schedule_iterations) / (3e-4 * segment.model.eta_factor)
    spike = 0.5 * started * math.exp(-400 * done) if iteration else 0
    if corpus == "pile":
        risen = 1 - math.exp(-(60 * done + 0.3 * iteration))
        return START[corpus] - size + same * shift * held * (0.15 + 0.3 * rate) * risen + spike + wiggle
    gap = START[corpus] - ASYMPTOTE[corpus]
    return (
        ASYMPTOTE[corpus]
        - size
        + gap * math.exp(-30 * done)
        + 0.12 * rate * min(1, 80 * done)
        + spike
        + wiggle
    )


def _receipt(segment: Segment) -> Receipt:
    curves = {c: [(i, _level(segment, c, i)) for i in segment.evaluations] for c in segment.validate_on}
    final = {}
    for corpus, points in curves.items():
        closing = [loss for i, loss in points if i in segment.closing]
        final[corpus] = FinalLoss(
            loss=sum(closing) / len(closing), evaluations=len(closing), stderr=0.001, noise=0.02
        )
    total = segment.schedule_iterations
    rates = [
        (i, segment.schedule(i, total))
        for i in sorted({*range(0, segment.iterations, 2), segment.iterations})
    ]
    return Receipt(
        identity=segment.identity,
        segment=segment,
        parent_weights=None,
        data=dict.fromkeys(segment.validate_on, "made up"),
        entropy_floor={"pile": 2.12, "sp": 2.4, "german": 0.2},
        curves=curves,
        learning_rate=rates,
        train_loss=[],
        final=final,
        checkpoints={},
        parameters=12345 * segment.model.layers * segment.model.width,
        code={},
        environment={},
        measured={},
    )


def _evaluation(plan: Plan, model_id: str) -> Evaluation:
    suites = {}
    for number, (suite, declared) in enumerate(plan.scale.suites.items()):
        value = 0.3 + 0.01 * (sum(model_id.encode()) % 17) + 0.05 * number
        tasks = {
            task: {"metric": "acc", "value": value + 0.02 * k, "stderr": 0.015, "documents": 100}
            for k, task in enumerate(declared.tasks)
        }
        suites[suite] = {"tasks": tasks, "average": value + 0.01, "stderr": 0.011}
    return Evaluation(
        id=model_id,
        identity="made up",
        suites=suites,
        prompts=[f"Satz Nummer {k} über 5 % | Öl & Käse_" for k in range(5)],
        generations=[f"und so weiter {{{k}}} von {model_id} «é» \n漢" for k in range(5)],
        suites_fingerprint="made up",
        environment={},
    )


def make_results(plan: Plan, results: Path, leave_out: tuple[str, ...] = ()) -> None:
    """Receipts of all segments, evaluations of all runs and merges, but those whose name is in `leave_out`."""
    for segment in plan.segments.values():
        if segment.name not in leave_out:
            write(receipt_path(results, plan.scale.name, segment.id), _receipt(segment))
    for paper in plan.papers.values():
        for name in [*paper.runs, *paper.merges]:
            if name not in leave_out:
                for model_id in plan.ids(paper.paper, name):
                    write(evaluation_path(results, plan.scale.name, model_id), _evaluation(plan, model_id))
