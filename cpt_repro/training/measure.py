"""What is measured of trainings: validation losses along one, and those of weights that are kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from cpt_repro.declarations.strict import parse
from cpt_repro.models.architecture import architecture
from cpt_repro.models.weights import load_weights
from cpt_repro.planning.plan import Plan, PlannedRun, ValidationPlan
from cpt_repro.records.lookup import Records
from cpt_repro.records.receipts import LaterLosses, Losses, identity_in, read_record, write_record
from cpt_repro.training import execution as spread
from cpt_repro.training.corpora import Corpora
from cpt_repro.training.loss import AT_ONCE, CausalLM
from cpt_repro.training.store import Store

#: A validation sample (n, L + 1) -> the loss of each of its sequences (n,), in nats per token.
OfSequences = Callable[[torch.Tensor], torch.Tensor]


class _Taken:
    """What was measured of one corpus: the curve of its first `along` sequences, and the loss of all."""

    def __init__(self, tokens: torch.Tensor, along: int | None):
        self.tokens, self.along = tokens, along or len(tokens)
        #: [(iteration, mean validation loss)]
        self.curve: list[tuple[int, float]] = []
        self.of_all: list[tuple[int, float]] = []
        #: loss of each sequence at the latest evaluation of all
        self.last = torch.zeros(0)

    def take(self, iteration: int, of_sequences: OfSequences, all_: bool) -> None:
        """One evaluation, of all sequences or of those along the way."""
        losses = of_sequences(self.tokens if all_ else self.tokens[: self.along])
        self.curve.append((iteration, losses[: self.along].mean().item()))
        if all_:
            self.last = losses
            self.of_all.append((iteration, losses.mean().item()))

    def told(self, closing: tuple[int, ...]) -> dict[str, Any]:
        """What a record says of it, after the last evaluation; the final loss is over those of `closing`."""
        last, n = self.last, len(self.last)
        values = np.array([loss for iteration, loss in self.of_all if iteration in closing])
        final = {
            "loss": float(values.mean()),
            "evaluations": len(values),
            "stderr": float(values.std(ddof=1) / len(values) ** 0.5) if len(values) > 1 else 0.0,
            "noise": (last.std() / n**0.5).item() if n > 1 else 0.0,
        }
        told = {"sequences": n, "curve": self.curve, "final": final}
        told["of_sequences"] = [round(loss, 5) for loss in last.tolist()]
        return told | ({"along": self.along, "start": dict(self.of_all).get(0)} if n > self.along else {})


class Curves:
    """Validation losses along one training, rates and mean training losses at the same points.

    Between an interruption and the resumption what is measured may change: points of a corpus that was
    measured otherwise are left out, and those of a new one begin there.
    """

    def __init__(self, wanted: ValidationPlan, corpora: Corpora):
        self.wanted, self._corpora = wanted, corpora
        self._of = {c: _Taken(corpora.validation(c, wanted.sequences), wanted.along) for c in wanted.corpora}
        self.train: list[tuple[int, float]] = []
        self.rates: list[tuple[int, float]] = []
        self._sum, self._count = 0.0, 0

    def _measured_on(self, corpus: str) -> list[Any]:
        return [self.wanted.sequences, self.wanted.along, self._corpora.fingerprint(corpus).fingerprint]

    def state_dict(self) -> dict[str, Any]:
        """What resumption needs."""
        curves = {c: [self._measured_on(c), taken.curve, taken.of_all] for c, taken in self._of.items()}
        state = {"curves": curves, "train": self.train, "rates": self.rates}
        return state | {"sum": self._sum, "count": self._count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        for corpus, (measured_on, curve, of_all) in state["curves"].items():
            if corpus in self._of and measured_on == self._measured_on(corpus):
                self._of[corpus].curve, self._of[corpus].of_all = curve, of_all
        self.train, self.rates = state["train"], state["rates"]
        self._sum, self._count = state["sum"], state["count"]

    def add(self, loss: float) -> None:
        """Notes the training loss of one update."""
        self._sum, self._count = self._sum + loss, self._count + 1

    def take(self, iteration: int, rate: float, of_sequences: OfSequences) -> None:
        """Measures all corpora after `iteration` updates; `rate` is that of the next one."""
        for taken in self._of.values():
            taken.take(iteration, of_sequences, iteration in self.wanted.of_all)
        self.rates.append((iteration, rate))
        if self._count:
            self.train.append((iteration, self._sum / self._count))
        self._sum, self._count = 0.0, 0

    def losses(self, closing: tuple[int, ...] | None = None) -> dict[str, Losses]:
        """Corpus -> what was measured, after the last evaluation; `closing`: others than the planned ones."""
        out = {}
        for corpus, taken in self._of.items():
            built = self._corpora.fingerprint(corpus)
            of = {"data": self._corpora.plan.data[corpus], "fingerprint": built.fingerprint}
            of |= {"entropy_floor": built.entropy_floor} | taken.told(closing or self.wanted.closing)
            out[corpus] = parse(Losses, of, f"validation on {corpus}")
        return out


def _kept_model(plan: Plan, run: PlannedRun, microbatch: int) -> tuple[CausalLM, OfSequences]:
    """A model on the scale's device, to load a run's kept weights into, and its losses of sequences."""
    training, device, execution = run.training, plan.scale.device, plan.scale.run_as(run.model_name)
    spread.prepare_process(training, execution.deterministic, device)
    where = torch.device("cuda" if device == "gpu" else "cpu")
    at_once = spread.validation_sequences(device, execution, microbatch)
    arch = architecture(training.model.architecture)
    model = arch.new(training.model, training.vocabulary, training.sequence_length, training.seed)
    arch.prepare_attention(model, device)
    wrapped = CausalLM(model).to(where).eval()

    def of_sequences(tokens: torch.Tensor) -> torch.Tensor:
        with spread.precision_context(training.precision, where):
            return wrapped.sequence_losses(tokens, at_once, where)

    return wrapped, of_sequences


def measure_kept(
    plan: Plan, records: Records, run: PlannedRun, store: Store, corpora: Corpora, say: Callable[[str], None]
) -> None:
    """Measures the kept weights of a trained run on the corpora that `records.to_measure` names.

    The losses are put to those in `records.later_path`, which `records` does not see. Final weights that are
    missing or altered are a `UserError`.
    """
    if not (left := records.to_measure(run)):
        return
    receipt, end, path = records.receipt(run), run.training.iterations, records.later_path(run)
    curves = Curves(replace(plan.wanted(run.identity), corpora=tuple(left)), corpora)
    kept = {iteration for iteration in store.iterations(run.identity) if iteration in receipt.checkpoints}
    microbatch = receipt.measured.execution.get("microbatch_sequences", AT_ONCE)
    model, of_sequences = _kept_model(plan, run, microbatch)
    for iteration in sorted(kept | {end}):
        folder = store.weights(run.identity, iteration)
        load_weights(model.model, folder, receipt.checkpoints.get(iteration))
        curves.take(iteration, 0.0, of_sequences)
    new = curves.losses(closing=(end,))
    before = read_record(LaterLosses, path).losses if identity_in(path) == run.identity else {}
    later = LaterLosses(identity=run.identity, losses=before | new, environment=spread.environment())
    write_record(path, later)
    finals = ", ".join(f"{corpus} {losses.final.loss:.3f}" for corpus, losses in new.items())
    say(f"{run.id}: measured on kept weights: {finals}")
