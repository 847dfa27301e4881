"""Training of segments by Composer. The only module that knows Composer.

What Composer is given: a model, a loader of whole global batches in our order, AdamW, and callbacks of one job each.
What it is not given: the learning rate's schedule (set from `schedules`, so that every update's rate is the paper's to
the last bit) and spinning loaders on resumption (our loader starts where the run stopped).
"""

from __future__ import annotations

import ctypes
import logging
import os
import platform
import signal
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, Dataset, DistributedSampler

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from composer import Callback, ComposerModel, Trainer
    from composer.core import DataSpec, get_precision_context
    from composer.devices import DeviceCPU, DeviceGPU
    from composer.utils import FSDP2Config, dist

from cpt_repro import __version__
from cpt_repro.data.build import load_fingerprint, open_domain, validation_sample
from cpt_repro.data.order import Order
from cpt_repro.data.shards import REBUILD, Sequences
from cpt_repro.declarations.manifests import load_manifest
from cpt_repro.declarations.scale import Execution, Scale
from cpt_repro.errors import UserError
from cpt_repro.files import code_commit, file_digest
from cpt_repro.models.load_outside import start_outside
from cpt_repro.models.neox import (
    empty_model,
    load_optimizer,
    load_weights,
    neox_config,
    new_model,
    save_model,
)
from cpt_repro.planning.plan import Segment, streams
from cpt_repro.project import ROOT
from cpt_repro.records.receipts import FinalLoss, Receipt, write
from cpt_repro.training import execution as spread
from cpt_repro.training.store import SavedStates, Store

for _name in ("composer", "streaming"):
    logging.getLogger(_name).setLevel(logging.ERROR)
warnings.filterwarnings("ignore", module=r"composer|torch|torchmetrics")


def keep_memory() -> None:
    """Lets glibc keep freed memory; returning it and faulting it in again took 7 % of a small model's step."""
    try:
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD
    except (OSError, AttributeError):
        pass  # another C library: slower, with the same bits


BETAS, EPS, WEIGHT_DECAY, CLIP = (
    (0.9, 0.95),
    1e-8,
    0.1,
    1.0,
)  # Ibrahim Table 13; eps from the authors' configuration
#: Seconds that ranks wait for each other at most: the first one hashes and writes what takes minutes at 10B.
PATIENCE = 3600
#: Validation sequences in one forward pass on a CPU where nothing is said.
AT_ONCE = 64


def mean_loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy in nats per token, in float32."""
    return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())


class CausalLM(ComposerModel):
    """Next-token loss over sequences of L + 1 tokens: every one of L positions predicts its successor."""

    def __init__(self, model: torch.nn.Module):
        super().__init__()
        self.model = model
        self.mean_loss = mean_loss
        self._mask: torch.Tensor | None = None

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        """Logits (n, L, vocabulary) for a batch (n, L + 1) of token ids."""
        inputs = batch[:, :-1]
        if inputs.is_cuda:  # see `execution.prepare`
            return self.model(input_ids=inputs, use_cache=False).logits
        # Without an explicit mask transformers looks for packed sequences and builds one, 7 ms a step on a CPU.
        if self._mask is None or self._mask.shape != inputs.shape:
            self._mask = torch.ones(inputs.shape, dtype=torch.bool, device=inputs.device)
        return self.model(input_ids=inputs, attention_mask=self._mask, use_cache=False).logits

    def loss(self, outputs: torch.Tensor, batch: torch.Tensor) -> torch.Tensor:
        """Mean cross-entropy in nats per token."""
        return self.mean_loss(outputs, batch[:, 1:])

    @torch.no_grad()
    def sequence_losses(
        self, tokens: torch.Tensor, at_once: int = AT_ONCE, device: torch.device | None = None
    ) -> torch.Tensor:
        """Mean loss of each sequence (n,), in float64 on the CPU; `at_once` of them in a forward pass on `device`."""
        out = []
        for part in tokens.split(at_once):
            part = part.to(device, non_blocking=True)
            logits = self(part).float()
            losses = F.cross_entropy(logits.flatten(0, 1), part[:, 1:].flatten(), reduction="none")
            out.append(losses.view(len(part), -1).double().mean(1))
        return torch.cat(out).cpu()


def adamw(model: torch.nn.Module) -> torch.optim.AdamW:
    """AdamW as the papers set it; biases and norms are not decayed, as in GPT-NeoX."""
    decayed = [p for p in model.parameters() if p.dim() >= 2]
    others = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=1.0, betas=BETAS, eps=EPS, fused=True)


class Corpora:
    """The built corpora of a scale: opened, verified and sampled once per process."""

    def __init__(self, root: Path, scale: Scale | None = None):
        self.root, self.scale = Path(root), scale
        self._open: dict[tuple[str, str], Sequences] = {}
        self._validation: dict[tuple[str, int], torch.Tensor] = {}
        self._fingerprints: dict[str, dict[str, Any]] = {}

    def sequences(self, corpus: str, domain: str) -> Sequences:
        """Training sequences of one domain, which the first rank of a node checks against their hashes."""
        key = (corpus, domain)
        if key not in self._open:
            check = dist.get_local_rank() == 0
            self._open[key] = open_domain(self.root, corpus, "train", domain, self.fingerprint(corpus), check)
        return self._open[key]

    def validation(self, corpus: str, n: int) -> torch.Tensor:
        """The fixed validation sample (n, L + 1), int64."""
        if (corpus, n) not in self._validation:
            sample = validation_sample(self.root, corpus, n, check=dist.get_local_rank() == 0)
            self._validation[corpus, n] = torch.from_numpy(sample.astype(np.int64))
        return self._validation[corpus, n]

    def fingerprint(self, corpus: str) -> dict[str, Any]:
        """The corpus' fingerprint record; one of another manifest or length than the scale's is a `UserError`."""
        if corpus not in self._fingerprints:
            found = load_fingerprint(self.root, corpus)
            wanted = load_manifest(self.scale.corpora[corpus]).digest if self.scale else found["manifest"]
            if found["manifest"] != wanted:
                fault = f"it was built from the manifest {found['manifest']}, which is now {wanted}."
                raise UserError(fault, where=str(self.root / corpus), do=REBUILD)
            if self.scale and found["sequence_length"] != self.scale.sequence_length:
                fault = f"its sequences have {found['sequence_length']} tokens; {self.scale.sequence_length} are wanted."
                raise UserError(fault, where=str(self.root / corpus), do=REBUILD)
            tokenizer = self.root / "tokenizer" / "tokenizer.json"
            if tokenizer.exists() and (now := file_digest(tokenizer)) != found["tokenizer"]:
                fault = (
                    f"it was made with another tokenizer: SHA-256 {found['tokenizer']}, which is now {now}."
                )
                raise UserError(fault, where=str(self.root / corpus), do=REBUILD)
            self._fingerprints[corpus] = found
        return self._fingerprints[corpus]


class Batches(Dataset):
    """A rank's rows of global batch k as (batch / ranks, L + 1) int64; only they are read."""

    def __init__(self, segment: Segment, corpora: Corpora):
        leaves = streams(segment.mixture)
        self._sequences = {(s.corpus, s.domain): corpora.sequences(s.corpus, s.domain) for s in leaves}
        sizes = {key: len(sequences) for key, sequences in self._sequences.items()}
        self.order = Order(
            segment.mixture, sizes, segment.batch_sequences, segment.seed, segment.batch_offset
        )
        self.length = segment.iterations

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, iteration: int) -> torch.Tensor:
        size = (
            self.order.batch_size // dist.get_world_size()
        )  # `train` has seen to it that nothing is left over
        low, parts = dist.get_global_rank() * size, []
        for stream, indices in self.order.batch(iteration):
            own = indices[max(low, 0) : max(low + size, 0)]
            low -= len(indices)
            if len(own):
                parts.append(self._sequences[stream.corpus, stream.domain].take(own))
        return torch.from_numpy(np.concatenate(parts).astype(np.int64))


class Iterations(DistributedSampler):
    """The numbers of the batches still to come; every rank takes its rows of each, which Composer has to be told so."""

    def __init__(self, first: int, end: int):
        self._range = range(first, end)

    def __iter__(self) -> Iterator[int]:
        return iter(self._range)

    def __len__(self) -> int:
        return len(self._range)

    def set_epoch(self, epoch: int) -> None:
        """Does nothing: there is one pass."""


def batch_loader(batches: Batches, segment: Segment, first: int, workers: int, device: str) -> DataLoader:
    """Loader of a rank's rows of the batches from `first` on."""
    return DataLoader(
        batches,
        batch_size=None,
        sampler=Iterations(first, segment.iterations),
        num_workers=workers,
        generator=torch.Generator().manual_seed(segment.seed),
        pin_memory=device == "gpu",
    )


class LearningRate(Callback):
    """Sets the rate of every update from the segment's schedule."""

    def __init__(self, segment: Segment):
        self.segment = segment

    def rate(self, iteration: int) -> float:
        return self.segment.schedule(iteration, self.segment.schedule_iterations)

    def batch_start(self, state, logger) -> None:
        rate = self.rate(state.timestamp.batch.value)
        for group in state.optimizers[0].param_groups:
            group["lr"] = rate


class NotFinite(Exception):
    """Loss or gradient of an update is infinite or not a number."""


class Clip(Callback):
    """Clips the global gradient norm before the update; a norm that is not finite never reaches the weights."""

    def __init__(self, excess: float = 1.0):
        #: see `execution.gradient_excess`
        self.excess = excess

    def after_train_batch(self, state, logger) -> None:
        if self.excess != 1:
            for parameter in state.model.parameters():
                parameter.grad.div_(self.excess)
        norm = torch.nn.utils.clip_grad_norm_(state.model.parameters(), CLIP)
        norm = norm.full_tensor() if isinstance(norm, spread.DTensor) else norm
        if not torch.isfinite(norm):
            raise NotFinite("gradient", state.timestamp.batch.value)


def bare(model: torch.nn.Module) -> CausalLM:
    """The model without what wraps it where there are several ranks."""
    return getattr(model, "module", model)


class Losses(Callback):
    """Takes training and validation losses at the planned iterations; survives resumption with the checkpoint."""

    def __init__(self, segment: Segment, validation: dict[str, torch.Tensor], rate: LearningRate):
        self.due = set(segment.evaluations)
        #: validation sequences in a forward pass
        self.at_once = AT_ONCE
        self.validation, self.rate = validation, rate
        self.curves: dict[str, list] = {corpus: [] for corpus in validation}
        self.train: list = []
        self.rates: list = []
        #: corpus -> loss of each validation sequence at the latest evaluation
        self.sequences: dict[str, torch.Tensor] = {}
        self._sum, self._count = 0.0, 0
        self.seconds = 0.0

    def state_dict(self) -> dict[str, Any]:
        """What resumption needs."""
        return {
            "curves": self.curves,
            "train": self.train,
            "rates": self.rates,
            "sum": self._sum,
            "count": self._count,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.curves, self.train, self.rates = state["curves"], state["train"], state["rates"]
        self._sum, self._count = state["sum"], state["count"]

    def _of_all_ranks(self, state, tokens: torch.Tensor) -> torch.Tensor:
        """Loss of each sequence; every rank takes its rows, in as many passes as the others, which FSDP needs."""
        ranks, device = dist.get_world_size(), state.device._device
        share = -(-len(tokens) // ranks)
        own = tokens[dist.get_global_rank() * share :][:share]
        own = torch.cat([own, tokens[: share - len(own)]])
        with get_precision_context(state.precision, state.precision_config):
            losses = bare(state.model).sequence_losses(own, self.at_once, device)
        return torch.cat(dist.all_gather_object(losses))[: len(tokens)] if ranks > 1 else losses

    def _take(self, iteration: int, state) -> None:
        began = time.perf_counter()
        model = bare(state.model)
        model.eval()
        for corpus, tokens in self.validation.items():
            losses = self._of_all_ranks(state, tokens)
            self.curves[corpus].append((iteration, losses.mean().item()))
            self.sequences[corpus] = losses
        model.train()
        self.rates.append((iteration, self.rate.rate(iteration)))
        if self._count:
            self.train.append((iteration, self._sum / self._count))
        self._sum, self._count = 0.0, 0
        self.seconds += time.perf_counter() - began

    def fit_start(self, state, logger) -> None:
        if state.timestamp.batch.value == 0:
            self._take(0, state)

    def batch_end(self, state, logger) -> None:
        loss = state.total_loss_dict["loss/train/total"]
        iteration = state.timestamp.batch.value
        if not np.isfinite(loss):
            raise NotFinite("training loss", iteration - 1)
        self._sum, self._count = self._sum + loss, self._count + 1
        if iteration in self.due:
            self._take(iteration, state)


class KeepWeights(Callback):
    """Saves the model where children, evaluations or the end ask for it."""

    def __init__(self, segment: Segment, store: Store, kept: dict[int, bool]):
        self.segment, self.store, self.kept = segment, store, kept
        self.hashes: dict[int, str] = {}

    def state_dict(self) -> dict[str, Any]:
        """Hashes of what was kept before an interruption."""
        return {"hashes": self.hashes}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.hashes = state["hashes"]

    def _save(self, state) -> None:
        iteration = state.timestamp.batch.value
        if iteration not in self.kept:
            return
        first, model = dist.get_global_rank() == 0, bare(state.model).model
        weights = spread.whole_weights(model, first)
        optimizer = spread.whole_optimizer(state.optimizers[0], first) if self.kept[iteration] else None
        if first:
            folder = self.store.weights(self.segment, iteration)
            self.hashes[iteration] = save_model(model, folder, optimizer, weights)
        dist.barrier()

    def fit_start(self, state, logger) -> None:
        self._save(state) if state.timestamp.batch.value == 0 else None

    def batch_end(self, state, logger) -> None:
        self._save(state)


class Resumable(Callback):
    """Writes the whole training state every `every` iterations; the two newest are kept, with their hashes."""

    def __init__(self, saved: SavedStates, every: int, execution: dict[str, Any]):
        self.saved, self.every, self.execution = saved, every, execution
        self.trainer: Trainer | None = None

    def batch_checkpoint(self, state, logger) -> None:
        iteration = state.timestamp.batch.value
        if self.every and iteration % self.every == 0 and state.timestamp < state.max_duration:
            first, sharded = dist.get_global_rank() == 0, self.execution["fsdp"]
            with self.saved.adding(iteration, first, sharded, self.execution) as aside:
                dist.barrier()
                # Of a sharded state Composer makes a folder of its own naming, beside the name given.
                self.trainer.save_checkpoint(str(aside / "state" if sharded else aside))
            dist.barrier()


class Pace(Callback):
    """Times the latest steps, from batch to batch, and how long each waited for its batch."""

    def __init__(self):
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

    def told(self) -> dict[str, Any]:
        """Median seconds of a step (validation and saving are seldom enough), and the share of time spent waiting."""
        n = len(self.steps)
        if not n:
            return {}
        waited = sum(list(self.waits)[-n:])
        return {
            "step_seconds": round(float(np.median(self.steps)), 6),
            "loader_wait_share": round(waited / sum(self.steps), 5),
        }


class Report(Callback):
    """Tells how far the segment is."""

    def __init__(self, progress, every: int = 50):
        self.progress, self.every = progress, every

    def batch_end(self, state, logger) -> None:
        if state.timestamp.batch.value % self.every == 0:
            self.progress(state.timestamp.batch.value)


def environment() -> dict[str, str]:
    """Versions and hardware that numbers may depend on."""
    import composer
    import streaming
    import transformers

    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = lines[0].partition(":")[2].strip() if lines else cpu
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else cpu
    modules = {
        "torch": torch,
        "numpy": np,
        "transformers": transformers,
        "composer": composer,
        "streaming": streaming,
    }
    versions = {name: module.__version__ for name, module in modules.items()}
    return {"python": platform.python_version(), "hardware": device, **versions}


def start_weights(
    model: torch.nn.Module,
    segment: Segment,
    parent: Segment | None,
    store: Store,
    tokenizer: Path | None = None,
) -> str | None:
    """Puts the weights of the parent, or of the model from outside, into `model`; returns the SHA-256 of the parent's
    file or of the outside model's tensors, None for a run from scratch. `tokenizer`: the folder of the data's."""
    if segment.external is not None:
        return start_outside(model, segment, store.folder(segment), tokenizer)
    if parent is None:
        return None
    folder = store.weights(parent, segment.parent_iteration)
    return load_weights(model, folder, store.recorded_hash(parent, segment.parent_iteration))


#: Of `config.Execution` what a receipt records, and a state against interruption.
RECORDED = ("microbatch_sequences", "activation_checkpointing", "compile", "deterministic")


def on_all_ranks(do: Callable[[], Any]) -> Any:
    """What `do` gives on this rank; a `UserError` of any rank is raised on all, so that none waits for it in vain."""
    given, fault = None, None
    try:
        given = do()
    except UserError as error:
        fault = error
    faults = [fault for fault in dist.all_gather_object(fault) if fault is not None]
    if faults:
        raise fault or faults[0]
    return given


def of_first_rank(do: Callable[[], Any]) -> Any:
    """What `do` gives on the first rank, on every rank; its `UserError` is raised on all."""
    told = [on_all_ranks(lambda: do() if dist.get_global_rank() == 0 else None)]
    dist.broadcast_object_list(told)
    return told[0]


def _newest(saved: SavedStates, sharded: bool) -> tuple[int, Path | None, dict[str, Any]]:
    """Iteration, path and execution of the newest saved state; one saved otherwise than `sharded` is a `UserError`."""
    iteration, state = saved.newest()
    if state is not None and state.is_dir() != sharded:
        was, now = ("sharded", "is not") if state.is_dir() else ("not sharded", "is")
        do = "Set 'fsdp' back, or remove the saved states to train anew."
        raise UserError(f"the state to go on from is {was}, and this run {now}.", where=str(state), do=do)
    # Composer loads the folder that it made within ours.
    inner = next(state.iterdir()) if state is not None and sharded else state
    return iteration, inner, saved.execution(iteration)


def _microbatch(
    trainer: Trainer, segment: Segment, execution: Execution, sharded: bool, before: dict[str, Any]
) -> int:
    """Sequences of a forward pass. `auto`: those of the run that is gone on with, else as many as fit."""
    ranks, told = dist.get_world_size(), execution.microbatch_sequences
    share = segment.batch_sequences // ranks
    if told != "auto" or share == 1:
        return share if told in ("auto", None) else min(told, share)
    if before.get("ranks") == ranks and isinstance(before.get("microbatch_sequences"), int):
        return before["microbatch_sequences"]  # another size would give other bits
    state, where = trainer.state, trainer.state.device._device

    def attempt(size: int) -> None:
        batch = torch.zeros((size, segment.sequence_length + 1), dtype=torch.int64, device=where)
        with get_precision_context(state.precision, state.precision_config):
            spread.trial(bare(state.model), state.optimizers[0], batch)

    def agree(fits: bool) -> bool:
        if where.type == "cuda":
            torch.cuda.empty_cache()
        all_fit = torch.tensor([int(fits)], device=where)
        dist.all_reduce(all_fit, reduce_operation="MIN")
        return bool(all_fit.item())

    if sharded and where.type == "cuda":
        fits = spread.fits_by_measure(attempt, *spread.cuda_memory())
    else:
        fits = spread.fits_by_trial(attempt)
    return spread.largest_that_fits(share, fits, agree, segment.id)


def train(
    segment: Segment,
    parent: Segment | None,
    corpora: Corpora,
    store: Store,
    kept: dict[int, bool],
    save_every: int = 0,
    progress=None,
    device: str = "cpu",
    execution: Execution = Execution(),  # noqa: B008 - frozen
    workers: int = 0,
) -> Receipt:
    """Trains one segment, or goes on where it was interrupted; its receipt is in the store when this returns.

    `kept`: iterations whose weights are saved, True where the optimizer's state is too. `save_every`: iterations
    between states kept against interruption, 0 for none. `progress`: called with the iteration now and then. `device`:
    cpu or gpu. `execution`: how it is spread over hardware. `workers`: processes that read data, 0 for this one; the
    order of samples does not depend on it.
    Raises `UserError` on missing or altered data or parent, on a loss that is not finite, on a missing GPU, and where
    the ranks do not divide the batch.
    """
    ranks = dist.get_world_size()
    if segment.batch_sequences % ranks:
        raise UserError(
            f"{ranks} ranks do not divide the batch of {segment.batch_sequences} sequences.",
            where=segment.id,
            do="Use a number of ranks that does.",
        )
    if device == "gpu" and not torch.cuda.is_available():
        raise UserError(
            "the scale asks for a GPU, and there is none.", where=segment.id, do="Choose a scale for CPUs."
        )
    keep_memory()
    torch.set_num_threads(segment.threads)
    torch.manual_seed(segment.seed)
    spread.choose_kernels(execution.deterministic, device)
    machine = DeviceGPU(allow_tf32=False) if device == "gpu" else DeviceCPU()
    if ranks > 1:
        dist.initialize_dist(machine, timeout=PATIENCE)
    sharded = execution.fsdp and ranks > 1
    first = dist.get_global_rank() == 0
    config = neox_config(segment.model, segment.vocabulary, segment.sequence_length)
    tokenizer = corpora.root / "tokenizer"
    if sharded:
        # The first rank makes or reads the weights; Composer hands them out, a layer at a time.
        model = new_model(config, segment.seed) if first else empty_model(config)
        parent_weights = of_first_rank(lambda: start_weights(model, segment, parent, store, tokenizer))
    else:
        model = new_model(config, segment.seed)
        parent_weights = on_all_ranks(lambda: start_weights(model, segment, parent, store, tokenizer))
    spread.prepare(model, execution, device)
    wrapped = CausalLM(model)
    optimizer = adamw(wrapped)
    if "optimizer" in segment.keep and not sharded:
        told = on_all_ranks(lambda: load_optimizer(store.weights(parent, segment.parent_iteration)))
        optimizer.load_state_dict(told)
    batches = on_all_ranks(lambda: Batches(segment, corpora))
    validation = on_all_ranks(
        lambda: {c: corpora.validation(c, segment.validation_sequences) for c in segment.validate_on}
    )
    fingerprints = {corpus: corpora.fingerprint(corpus)["fingerprint"] for corpus in segment.data}

    rate = LearningRate(segment)
    losses = Losses(segment, validation, rate)
    weights = KeepWeights(segment, store, kept)
    saved = SavedStates(store.folder(segment), fingerprints)
    pace, how = (
        Pace(),
        {name: getattr(execution, name) for name in RECORDED} | {"ranks": ranks, "fsdp": sharded},
    )
    resumable = Resumable(saved, save_every, how)
    clip = Clip(spread.gradient_excess(machine._device) if sharded else 1.0)
    callbacks = [pace, rate, clip, losses, weights, resumable, *([Report(progress)] if progress else [])]
    started_at, state, before = of_first_rank(lambda: _newest(saved, sharded))
    loader = batch_loader(batches, segment, started_at, workers, device)
    spec = DataSpec(
        loader,
        get_num_samples_in_batch=len,
        get_num_tokens_in_batch=lambda batch: batch.shape[0] * segment.sequence_length,
        split_batch=lambda batch, size: list(batch.split(size)),
    )
    trainer = Trainer(
        model=wrapped,
        train_dataloader=spec,
        max_duration=f"{segment.iterations}ba",
        optimizers=optimizer,
        device=machine,
        dist_timeout=PATIENCE,
        precision=segment.precision,
        device_train_microbatch_size=segment.batch_sequences // ranks,
        callbacks=callbacks,
        progress_bar=False,
        spin_dataloaders=False,
        auto_log_hparams=False,
        load_path=str(state) if state else None,
        parallelism_config={"fsdp": FSDP2Config(state_dict_type="sharded")} if sharded else None,
    )
    resumable.trainer = trainer
    if "optimizer" in segment.keep and sharded and state is None:
        folder = store.weights(parent, segment.parent_iteration)
        spread.spread_optimizer(optimizer, on_all_ranks(lambda: load_optimizer(folder, mapped=True)))
    size = _microbatch(trainer, segment, execution, sharded, before)
    how["microbatch_sequences"] = trainer.state.device_train_microbatch_size = size
    if device == "gpu" or execution.microbatch_sequences is not None:
        losses.at_once = size
    if execution.compile:  # after the micro-batch is found, so that sizes tried are not compiled
        spread.compile_parts(wrapped)
    began = time.perf_counter()
    try:
        trainer.fit()
    except NotFinite as error:
        quantity, iteration = error.args
        samples = "; ".join(
            f"{s.corpus}/{s.domain} {', '.join(map(str, i))}" for s, i in batches.order.batch(iteration)
        )
        raise UserError(
            f"the {quantity} of batch {iteration} is not finite; its sequences: {samples}.",
            where=segment.id,
            do="Look at these sequences or lower eta_max; the last good checkpoint is kept.",
        ) from None
    except (RuntimeError, ConnectionError, EOFError, FileNotFoundError) as error:
        # A reader that dies while it hands over a batch breaks the pipe or socket between the two.
        if not workers or (isinstance(error, RuntimeError) and "DataLoader worker" not in str(error)):
            raise
        # Torch's handler would raise again for every other reader that ends, wherever this process then is.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        fault = "a process that reads data was killed or ran out of memory."
        raise UserError(
            fault, where=segment.id, do="Run again: it goes on from the last checkpoint."
        ) from None
    finally:
        trainer.close()
    seconds = time.perf_counter() - began
    if trainer.state.timestamp.batch.value != segment.iterations:
        done = trainer.state.timestamp.batch.value
        raise UserError(
            f"training ended at {done} of {segment.iterations} iterations.", where=segment.id, do="Report it."
        )

    trained = (segment.iterations - started_at) * segment.batch_sequences * segment.sequence_length
    receipt = Receipt(
        identity=segment.identity,
        segment=segment,
        parent_weights=parent_weights,
        data=fingerprints,
        entropy_floor={
            corpus: corpora.fingerprint(corpus).get("entropy_floor") for corpus in segment.validate_on
        },
        curves=losses.curves,
        learning_rate=losses.rates,
        train_loss=losses.train,
        final={corpus: _final(losses, corpus, segment) for corpus in validation},
        sequence_losses={
            corpus: [round(v, 5) for v in losses.sequences[corpus].tolist()] for corpus in validation
        },
        checkpoints=weights.hashes,
        parameters=sum(p.numel() for p in model.parameters()),
        code={"cpt_repro": __version__},
        environment=environment(),
        measured={
            "seconds": round(seconds, 2),
            "tokens_per_second": round(trained / max(seconds - losses.seconds, 1e-9)),
            "validation_seconds": round(losses.seconds, 2),
            "resumed_at": started_at,
            **pace.told(),
            "execution": how,
            "commit": code_commit(ROOT),
        },
    )
    if first:
        write(store.folder(segment) / "receipt.json", receipt)
        saved.clear()
    dist.barrier()
    return receipt


def _final(losses: Losses, corpus: str, segment: Segment) -> FinalLoss:
    closing = set(segment.closing)
    values = np.array([loss for iteration, loss in losses.curves[corpus] if iteration in closing])
    spread = values.std(ddof=1) / len(values) ** 0.5 if len(values) > 1 else 0.0
    sequences = losses.sequences[corpus]
    noise = (sequences.std() / len(sequences) ** 0.5).item()
    return FinalLoss(loss=float(values.mean()), evaluations=len(values), stderr=float(spread), noise=noise)
