"""Training by Composer: the only file that knows it.

Composer is given a model, a loader of whole global batches in our order, AdamW, and callbacks of one job
each. It is not given the learning rate's schedule, so that every update's rate is the paper's to the last
bit, and spins no loader on resumption: ours starts where the run stopped.
"""

from __future__ import annotations

import datetime
import errno
import logging
import os
import pickle
import signal
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import torch
from torch.distributed.checkpoint import state_dict as states
from torch.distributed.checkpoint.api import CheckpointException
from torch.torch_version import TorchVersion

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from composer import Callback, ComposerModel, Trainer
    from composer.devices import Device, DeviceCPU, DeviceGPU
    from composer.utils import FSDP2Config, dist, get_composer_env_dict, save_checkpoint

from cpt_repro import __version__
from cpt_repro.declarations.scale import Execution
from cpt_repro.errors import UserError
from cpt_repro.files import code_commit
from cpt_repro.models.architecture import architecture
from cpt_repro.models.outside import Outside, check_fits, check_tokenizer, load_outside
from cpt_repro.models.weights import load_optimizer, load_weights, save_model
from cpt_repro.planning.plan import Plan, PlannedRun, ValidationPlan
from cpt_repro.records.receipts import Measured, Receipt, RunName
from cpt_repro.training import execution as spread
from cpt_repro.training.batches import Batches, batch_loader
from cpt_repro.training.corpora import Corpora
from cpt_repro.training.loss import AT_ONCE, CausalLM
from cpt_repro.training.measure import Curves
from cpt_repro.training.optimizer import NotFinite, adamw, clip, learning_rate, set_rate
from cpt_repro.training.store import SavedState, SavedStates, Store

for _name in ("composer", "streaming"):
    logging.getLogger(_name).setLevel(logging.ERROR)
warnings.filterwarnings("ignore", module=r"composer|torch|torchmetrics")

#: Seconds that ranks wait for each other at most: the first one hashes and writes what takes minutes at 10B.
PATIENCE = 3600
#: States as they are where nothing is sharded, by names of tensors, on the CPU of the first rank.
WHOLE = states.StateDictOptions(full_state_dict=True, cpu_offload=True)


@dataclass(frozen=True)
class Job:
    """A training to be done: what is measured along it and kept of it, and how it is spread over hardware."""

    run: PlannedRun
    wanted: ValidationPlan
    #: Iterations whose weights are saved, True where the optimizer's state is too.
    kept: Mapping[int, bool]
    #: cpu or gpu
    device: str = "cpu"
    execution: Execution = Execution()
    #: Processes that read data, 0 for this one; the order of samples does not depend on it.
    workers: int = 0
    #: Iterations between states kept against interruption, 0 for none.
    save_every: int = 0
    #: Called with the iteration now and then.
    progress: Callable[[int], None] | None = None

    @classmethod
    def of(cls, plan: Plan, run: PlannedRun, progress: Callable[[int], None] | None = None) -> Job:
        """As the plan and its scale have it."""
        scale, decided = plan.scale, (run, plan.wanted(run.identity), plan.kept(run.identity))
        every = scale.iterations(scale.save_every, run.training.batch_sequences)
        execution = scale.run_as(run.model_name)
        return cls(*decided, scale.device, execution, scale.loader_workers, every, progress)


class _ComposedLM(CausalLM, ComposerModel):
    """The loss module as Composer wants it."""


def bare(model: torch.nn.Module) -> CausalLM:
    """The model without what wraps it where there are several ranks."""
    return getattr(model, "module", model)


# -- ranks


def warm_up(folder: Path) -> None:
    """Asks now what Composer asks of the machine for a process's first trainer: it takes a second."""
    get_composer_env_dict()


def join_ranks(device: str) -> Device:
    """The device of this process; where there are several ranks, they wait for each other here first."""
    machine = DeviceGPU(allow_tf32=False) if device == "gpu" else DeviceCPU()
    if dist.get_world_size() > 1:
        dist.initialize_dist(machine, timeout=PATIENCE)
    return machine


def on_all_ranks(do: Callable[[], Any]) -> Any:
    """What `do` gives on this rank; a `UserError` of any rank is raised on all: none waits in vain."""
    result = fault = None
    try:
        result = do()
    except UserError as error:
        fault = error
    for told in (fault, *dist.all_gather_object(fault)):
        if told is not None:
            raise told
    return result


def of_first_rank(do: Callable[[], Any]) -> Any:
    """What `do` gives on the first rank, on every rank; its `UserError` is raised on all."""
    result = [on_all_ranks(lambda: do() if dist.get_global_rank() == 0 else None)]
    dist.broadcast_object_list(result)
    return result[0]


# -- states against interruption

#: What Composer puts into a state that torch does not call plain: times, numpy's random state, a version.
PLAIN = [datetime.timedelta, np.ndarray, np.dtype, type(np.dtype(np.uint32)), TorchVersion]
PLAIN += [np.zeros(0).__reduce__()[0]]
#: What torch writes of a sharded state's parts, types of numbers among it.
_DESCRIPTION = {
    "pathlib": {type(Path()).__name__},
    "torch": {"Size"} | {name for name, kind in vars(torch).items() if isinstance(kind, torch.dtype)},
    "torch.serialization": {"_get_layout"},
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.distributed.checkpoint.metadata": {
        "BytesStorageMetadata", "ChunkStorageMetadata", "Metadata", "MetadataIndex", "StorageMeta",
        "TensorProperties", "TensorStorageMetadata", "_MEM_FORMAT_ENCODING",
    },
}  # fmt: skip


class _Description(pickle._Unpickler):
    """Reads the description of a sharded state's parts, which torch will unpickle, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if name not in _DESCRIPTION.get(module, ()):
            raise pickle.UnpicklingError(f"{module}.{name}")
        return super().find_class(module, name)

    def load_build(self) -> None:
        if callable(self.stack[-2]):  # whose attributes it would set
            raise pickle.UnpicklingError("a type that is altered")
        super().load_build()

    dispatch = pickle._Unpickler.dispatch | {pickle.BUILD[0]: load_build}


def _parts(path: Path) -> Path:
    """The folder that Composer made within ours; its description leads to files of this folder only."""
    (described,) = path.glob("*/.metadata")
    with open(described, "rb") as stream:
        places = _Description(stream).load().storage_data.values()
    if not {place.relative_path for place in places} <= set(os.listdir(described.parent)):
        raise pickle.UnpicklingError("files elsewhere")
    return described.parent


def _without_algorithms(state: dict[str, Any]) -> None:
    """We have none; Composer evaluates the text that a state gives for one."""
    for name in ("algorithms", "_algorithms"):
        state["state"].pop(name, None)


@contextmanager
def _loading(path: Path | None, sharded: bool) -> Iterator[str | None]:
    """Yields what Composer is to load, None of no state; anything but a state of ours is a `UserError`."""
    # Whoever asks torch for a file from now on, Composer among them, gets tensors and plain values. Not at
    # the import: a job of the warm process has the modules of that one and its own environment.
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
    os.environ.pop("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", None)
    try:
        with torch.serialization.safe_globals(PLAIN):
            yield str(_parts(path) if path and sharded else path) if path else None
    except (
        CheckpointException, pickle.UnpicklingError, ArithmeticError, AssertionError, AttributeError,
        EOFError, LookupError, OSError, RuntimeError, TypeError, ValueError,
    ) as error:  # fmt: skip
        # An empty file is an invalid argument; what a storage refuses is told elsewhere.
        if path is None or isinstance(error, OSError) and error.errno != errno.EINVAL:
            raise
        fault = f"it is no state of this training, in tensors and plain values ({type(error).__name__})."
        do = "Remove it if it is not yours; the one before it, or none, is then gone on from."
        raise UserError(fault, where=str(path), do=do) from error


# -- callbacks


class InTurn(Callback):
    """All callbacks as one: a small model feels how long Composer takes to call each of several."""

    def __init__(self, *callbacks: Callback):
        self._callbacks = {type(callback).__name__: callback for callback in callbacks}

    def run_event(self, event, state, logger) -> None:
        for callback in self._callbacks.values():
            callback.run_event(event, state, logger)

    def state_dict(self) -> dict[str, Any]:
        return {name: callback.state_dict() for name, callback in self._callbacks.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name in self._callbacks.keys() & state.keys():
            self._callbacks[name].load_state_dict(state[name])


class Update(Callback):
    """Gives every update its rate from the schedule, and clips the global gradient norm before it."""

    def __init__(self, rate: Callable[[int], float], excess: float):
        self.rate, self.excess = rate, excess

    def fit_start(self, state, logger) -> None:
        self.parameters = list(state.model.parameters())  # which walks all its modules

    def batch_start(self, state, logger) -> None:
        set_rate(state.optimizers[0], self.rate(state.timestamp.batch.value))

    def after_train_batch(self, state, logger) -> None:
        clip(self.parameters, state.timestamp.batch.value, self.excess)


class Measure(Callback):
    """Takes training and validation losses where it is due; survives resumption with the checkpoint."""

    def __init__(self, curves: Curves, precision: str, rate: Callable[[int], float]):
        self.curves, self.precision, self.rate = curves, precision, rate
        self.due = set(curves.wanted.evaluations)
        #: validation sequences in a forward pass
        self.at_once = AT_ONCE
        self.seconds = 0.0
        self.state_dict, self.load_state_dict = curves.state_dict, curves.load_state_dict

    def _take(self, state) -> None:
        began, iteration = time.perf_counter(), state.timestamp.batch.value
        model, device, ranks = bare(state.model), state.device._device, dist.get_world_size()

        def of_sequences(tokens: torch.Tensor) -> torch.Tensor:
            """Every rank takes its rows, in as many passes as the others, which FSDP needs."""
            share = -(-len(tokens) // ranks)
            own = torch.cat([tokens[dist.get_global_rank() * share :][:share], tokens])[:share]
            with spread.precision_context(self.precision, device):
                losses = model.sequence_losses(own, self.at_once, device)
            return torch.cat(dist.all_gather_object(losses))[: len(tokens)] if ranks > 1 else losses

        model.eval()
        self.curves.take(iteration, self.rate(iteration), of_sequences)
        model.train()
        self.seconds += time.perf_counter() - began

    def fit_start(self, state, logger) -> None:
        if state.timestamp.batch.value == 0:
            self._take(state)

    def batch_end(self, state, logger) -> None:
        loss = state.total_loss_dict["loss/train/total"]
        if not np.isfinite(loss):
            raise NotFinite("training loss", state.timestamp.batch.value - 1)
        self.curves.add(loss)
        if state.timestamp.batch.value in self.due:
            self._take(state)


class KeepWeights(Callback):
    """Saves the model where children, evaluations or the end ask for it."""

    def __init__(self, identity: str, store: Store, kept: Mapping[int, bool]):
        self.identity, self.store, self.kept = identity, store, kept
        #: iteration -> SHA-256 of the weights file
        self.hashes: dict[int, str] = {}

    def state_dict(self) -> dict[str, Any]:
        return {"hashes": self.hashes}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.hashes = state["hashes"]

    def fit_start(self, state, logger) -> None:
        if state.timestamp.batch.value == 0:
            self.batch_end(state, logger)

    def batch_end(self, state, logger) -> None:
        iteration, model = state.timestamp.batch.value, bare(state.model).model
        if iteration not in self.kept:
            return
        weights, optimizer = states.get_model_state_dict(model, options=WHOLE), None
        if self.kept[iteration]:
            optimizer = states.get_optimizer_state_dict(model, state.optimizers[0], options=WHOLE)
        folder = self.store.weights(self.identity, iteration)
        self.hashes[iteration] = of_first_rank(lambda: save_model(model, folder, optimizer, weights))


class Resumable(Callback):
    """Writes the whole training state every `every` iterations; the two newest are kept, with hashes."""

    def __init__(self, saved: SavedStates, every: int, execution: dict[str, Any]):
        self.saved, self.every, self.execution = saved, every, execution

    def batch_checkpoint(self, state, logger) -> None:
        iteration = state.timestamp.batch.value
        if self.every and iteration % self.every == 0 and state.timestamp < state.max_duration:
            sharded = self.execution["fsdp"]
            with ExitStack() as stack:
                adding = partial(self.saved.adding, iteration, sharded, self.execution)
                aside = of_first_rank(lambda: stack.enter_context(adding()))
                # Of a sharded state Composer makes a folder of its own naming, beside the name given.
                save_checkpoint(state, str(aside / "state" if sharded else aside))
                # Every rank looks for the file, which the first one is about to give its name.
                dist.barrier()
            dist.barrier()


class Report(Callback):
    """Tells how far the training is; times the latest steps, batch to batch, and their waits for a batch."""

    #: iterations between
    every = 50

    def __init__(self, progress: Callable[[int], None] | None):
        self.progress = progress
        #: seconds; the first step, which compiles and warms up, is left out
        self.steps: deque[float] = deque(maxlen=1000)
        self.waits: deque[float] = deque(maxlen=1000)
        self._asked: float | None = None

    def before_dataloader(self, state, logger) -> None:
        now = time.perf_counter()
        if state.timestamp.batch.value > 1 and self._asked is not None:
            self.steps.append(now - self._asked)
        self._asked = now

    def after_dataloader(self, state, logger) -> None:
        self.waits.append(time.perf_counter() - self._asked)

    def batch_end(self, state, logger) -> None:
        if self.progress and state.timestamp.batch.value % self.every == 0:
            self.progress(state.timestamp.batch.value)

    def measured(self) -> dict[str, float]:
        """Median seconds of a step (validation and saving are seldom enough), share of time spent waiting."""
        if not self.steps:
            return {}
        waited = sum(list(self.waits)[-len(self.steps) :])
        median = round(float(np.median(self.steps)), 6)
        return {"step_seconds": median, "loader_wait_share": round(waited / sum(self.steps), 5)}


# -- a training


def train(job: Job, corpora: Corpora, store: Store) -> Receipt:
    """Trains, or goes on where it was interrupted; the receipt is in the store when this returns.

    Data or a parent that is missing or altered, a loss that is not finite, a missing GPU, and ranks that do
    not divide the batch are a `UserError`. A rank that fails alone should end: so ends the others' waiting.
    """
    fitting = _Fitting(job, corpora, store)
    fitting.prepare_model()
    fitting.prepare_data()
    fitting.prepare_trainer()
    fitting.choose_microbatch()
    fitting.fit()
    return fitting.finish()


class _Fitting:
    """One training, phase by phase."""

    def __init__(self, job: Job, corpora: Corpora, store: Store):
        self.job, self.corpora, self.store = job, corpora, store
        self.training, self.execution = job.run.training, job.execution
        self.ranks, self.rank = dist.get_world_size(), dist.get_global_rank()
        self.sharded = self.execution.fsdp and self.ranks > 1
        self.arch = architecture(self.training.model.architecture)
        #: learning rate of the update after so many
        self.rate = partial(learning_rate, self.training)
        self.fault = partial(UserError, where=job.run.id)
        self.share, left = divmod(batch := self.training.batch_sequences, self.ranks)
        if left:
            what = f"{self.ranks} ranks do not divide the batch of {batch} sequences."
            raise self.fault(what, do="Change it.")
        if job.device == "gpu" and not torch.cuda.is_available():
            raise self.fault("the scale asks for a GPU, and there is none.", do="Choose a scale for CPUs.")
        spread.prepare_process(self.training, self.execution.deterministic, job.device)
        self.machine = join_ranks(job.device)

    def _load_start(self, model: torch.nn.Module) -> str | None:
        """Puts what it starts from into `model`: SHA-256 of the parent's file, or of a model's tensors."""
        start, external, size = self.training.start, self.training.external, self.training.model
        if external:
            outside = Outside(self.corpora.plan.project, external.model, self.job.run.id)
            setting = f"the model {self.job.run.model_name} in the scale file"
            check_fits(outside, size, self.training.vocabulary, setting)
            check_tokenizer(outside, self.corpora.tokenizer)
            return load_outside(outside, model, external.weights)
        if start is None:
            return None
        folder = self.store.weights(start.parent, start.iteration)
        return load_weights(model, folder, self.store.recorded_hash(start.parent, start.iteration))

    def prepare_model(self) -> None:
        """The model with the weights it starts from, and its optimizer."""
        training = self.training
        size = (training.model, training.vocabulary, training.sequence_length)
        # Of a sharded model the first rank makes or reads the weights; Composer hands them out by layers.
        model = self.arch.empty(*size) if self.sharded and self.rank else self.arch.new(*size, training.seed)
        agreed = of_first_rank if self.sharded else on_all_ranks
        self.start_digest = agreed(lambda: self._load_start(model))
        spread.prepare_model(model, self.arch, self.execution, self.job.device)
        self.model = _ComposedLM(model)
        self.model.in_rows = not (self.sharded or self.execution.compile or self.job.device == "gpu")
        self.parameters = sum(parameter.numel() for parameter in model.parameters())
        self.optimizer = adamw(self.model)

    def prepare_data(self) -> None:
        """Batches, validation samples, and what the training goes on from."""
        training, job = self.training, self.job
        self.batches = on_all_ranks(lambda: Batches(training, self.corpora, self.rank, self.ranks))
        self.curves = on_all_ranks(lambda: Curves(job.wanted, self.corpora))
        self.fingerprints = {c: self.corpora.fingerprint(c).fingerprint for c in training.data}
        basis = self.fingerprints | ({"start weights": self.start_digest} if self.start_digest else {})
        self.saved = SavedStates(self.store.folder(training.identity), basis)
        self.state: SavedState | None = of_first_rank(lambda: self.saved.newest(self.sharded))
        self.started_at = self.state.iteration if self.state else 0

    def prepare_trainer(self) -> None:
        """Composer's trainer with our callbacks, its state loaded."""
        job, training = self.job, self.training
        #: how it is spread, which the receipt and saved states record
        self.how = self.execution.model_dump(include={"activation_checkpointing", "compile", "deterministic"})
        self.how |= {"ranks": self.ranks, "fsdp": self.sharded, "loss_in_rows": self.model.in_rows}
        self.measure = Measure(self.curves, training.precision, self.rate)
        self.keep = KeepWeights(training.identity, self.store, job.kept)
        self.report = Report(job.progress)
        update = Update(self.rate, spread.gradient_excess(self.machine._device) if self.sharded else 1.0)
        resumable = Resumable(self.saved, job.save_every, self.how)
        in_turn = InTurn(update, self.measure, self.keep, resumable, self.report)
        gpu = job.device == "gpu"
        loader = batch_loader(self.batches, training.seed, self.started_at, job.workers, pinned=gpu)
        state = self.saved.folder / self.state.file if self.state else None
        with _loading(state, self.sharded) as load_path:
            self.trainer = Trainer(
                model=self.model,
                train_dataloader=loader,
                max_duration=f"{training.iterations}ba",
                optimizers=self.optimizer,
                device=self.machine,
                dist_timeout=PATIENCE,
                precision=training.precision,
                device_train_microbatch_size=self.share,
                callbacks=in_turn,
                **dict.fromkeys(("progress_bar", "spin_dataloaders", "auto_log_hparams"), False),
                load_path=load_path,
                load_ignore_keys=_without_algorithms,
                parallelism_config={"fsdp": FSDP2Config(state_dict_type="sharded")} if self.sharded else None,
            )
        # At each of 13 events a step the engine looks for algorithms, loggers and a profiler, of which there
        # are none: 1 ms a step, 4 % of a small model's.
        theirs = {"state": self.trainer.state, "logger": self.trainer.logger}
        self.trainer.engine.run_event = partial(in_turn.run_event, **theirs)
        start = training.start
        if start and "optimizer" in start.keep and not self.state:
            folder = self.store.weights(start.parent, start.iteration)
            state = on_all_ranks(lambda: load_optimizer(folder, mapped=self.sharded))
            model = bare(self.trainer.state.model).model
            states.set_optimizer_state_dict(model, self.optimizer, state, options=WHOLE)

    def choose_microbatch(self) -> None:
        """Sequences of a forward pass; compiling comes after, so that sizes tried are not compiled."""
        size = self._microbatch()
        self.how["microbatch_sequences"] = self.trainer.state.device_train_microbatch_size = size
        self.measure.at_once = spread.validation_sequences(self.job.device, self.execution, size)
        if self.execution.compile:
            spread.compile_parts(self.model, self.arch)

    def _microbatch(self) -> int:
        """`auto`: those of the run that is gone on with, else as many as fit."""
        asked, before = self.execution.microbatch_sequences, self.state.execution if self.state else {}
        if asked != "auto" or self.share == 1:
            return self.share if asked in ("auto", None) else min(asked, self.share)
        if before.get("ranks") == self.ranks and isinstance(before.get("microbatch_sequences"), int):
            return before["microbatch_sequences"]  # another size would give other bits
        device = self.machine._device

        def attempt(size: int) -> None:
            batch = torch.zeros((size, self.training.sequence_length + 1), dtype=torch.int64, device=device)
            with spread.precision_context(self.training.precision, device):
                spread.trial(bare(self.trainer.state.model), self.optimizer, batch)

        def agree(fits: bool) -> bool:
            torch.cuda.empty_cache()
            return all(dist.all_gather_object(fits))

        if self.sharded and device.type == "cuda":
            memory = spread.cuda_memory()
            fits = spread.fits_by_measure(attempt, torch.cuda.max_memory_allocated, memory)
        else:
            fits = spread.fits_by_trial(attempt)
        return spread.largest_that_fits(self.share, fits, agree, self.job.run.id)

    def fit(self) -> None:
        """All steps that are left."""
        began = time.perf_counter()
        try:
            self.trainer.fit()
        except NotFinite as error:
            quantity, iteration = error.args
            sequences = self.batches.described(iteration)
            what = f"the {quantity} of batch {iteration} is not finite; its sequences: {sequences}."
            do = "Look at these sequences or lower eta_max; the last good checkpoint is kept."
            raise self.fault(what, do=do) from None
        except (RuntimeError, ConnectionError, EOFError, FileNotFoundError) as error:
            # A reader that dies while it hands over a batch breaks the pipe or socket between the two.
            of_reader = not isinstance(error, RuntimeError) or "DataLoader worker" in str(error)
            if not (self.job.workers and of_reader):
                raise
            # Torch's handler would raise again for every other reader that ends, wherever this process is.
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            do = "Run again: it goes on from the last checkpoint."
            raise self.fault("a process that reads data was killed or ran out of memory.", do=do) from None
        finally:
            # `trainer.close` would also wait for the other ranks, of which one may have failed alone.
            self.trainer.engine.close()
        self.seconds = time.perf_counter() - began
        done, wanted = self.trainer.state.timestamp.batch.value, self.training.iterations
        if done != wanted:
            raise self.fault(f"training ended at {done} of {wanted} iterations.", do="Report it.")

    def finish(self) -> Receipt:
        """The receipt, written by the first rank."""
        run, training, own_seconds = self.job.run, self.training, self.measure.seconds
        steps = training.iterations - self.started_at
        tokens = steps * training.batch_sequences * training.sequence_length
        receipt = Receipt(
            identity=training.identity,
            run=RunName(id=run.id, paper=run.paper, name=run.name, seed=run.seed, model=run.model_name),
            training=training,
            parent_weights=self.start_digest,
            data=self.fingerprints,
            losses=self.curves.losses(),
            learning_rate=tuple(self.curves.rates),
            train_loss=tuple(self.curves.train),
            checkpoints=self.keep.hashes,
            parameters=self.parameters,
            code={"cpt_repro": __version__},
            environment=spread.environment(),
            measured=Measured(
                seconds=round(self.seconds, 2),
                tokens_per_second=round(tokens / max(self.seconds - own_seconds, 1e-9)),
                validation_seconds=round(own_seconds, 2),
                resumed_at=self.started_at,
                execution=self.how,
                commit=code_commit(self.corpora.plan.project.root),
                **self.report.measured(),
            ),
        )
        if self.rank == 0:
            self.store.finish(receipt)
            self.saved.clear()
        dist.barrier()
        return receipt
