"""How training is spread over hardware: kernels, threads, attention, compiling, sharding, memory."""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from importlib.metadata import version

import numpy as np
import torch
import transformers
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from cpt_repro.declarations.scale import Execution
from cpt_repro.errors import UserError
from cpt_repro.models.architecture import Architecture
from cpt_repro.planning.training import Training
from cpt_repro.processes import processor
from cpt_repro.training.loss import AT_ONCE, CausalLM

#: Part of a GPU's memory that an estimated micro-batch may fill; the rest is for fragmentation.
USABLE = 0.9


def choose_kernels(deterministic: bool, device: str) -> None:
    """Deterministic kernels only, or the fastest; to be called before the GPU is first used.

    TF32 is off: products are bf16 by autocast, but those of rotary angles, which its 11 bits would falsify.
    """
    if device == "gpu" and deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(deterministic)
    # Filling fresh memory would only find reads of uninitialised memory, at a cost in every step.
    torch.utils.deterministic.fill_uninitialized_memory = False
    torch.backends.cudnn.benchmark = device == "gpu" and not deterministic
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False


def prepare_process(training: Training, deterministic: bool, device: str) -> None:
    """Threads, memory, kernels and the global generator of a process that trains or measures."""
    with suppress(OSError, AttributeError):  # another C library: slower, with the same bits
        # Returning freed memory and faulting it in again took 7 % of a small model's step.
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD
    torch.set_num_threads(training.threads)
    torch.manual_seed(training.seed)
    choose_kernels(deterministic, device)


def precision_context(precision: str, device: torch.device) -> AbstractContextManager:
    """Mixed precision of that name on a GPU; on a CPU everything is float32."""
    half = {"amp_bf16": torch.bfloat16, "amp_fp16": torch.float16}.get(precision)
    return torch.autocast(device.type, dtype=half, enabled=half is not None and device.type == "cuda")


def validation_sequences(device: str, execution: Execution, microbatch: int) -> int:
    """Sequences in a forward pass of validation, where training takes `microbatch` of them."""
    return microbatch if device == "gpu" or execution.microbatch_sequences is not None else AT_ONCE


def prepare_model(
    model: transformers.PreTrainedModel, architecture: Architecture, execution: Execution, device: str
) -> None:
    """Attention, activation checkpointing and the sharding policy, before the model is given to a trainer."""
    architecture.prepare_attention(model, device)
    if execution.activation_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.fsdp_wrap_fn = architecture.is_layer


def compile_parts(wrapped: CausalLM, architecture: Architecture) -> None:
    """Compiles the layers' forward, all as one, and the loss, which then needs no float32 copy of the logits.

    Names of parameters stay as they are, and what FSDP and checkpointing put around a layer stays outside.
    """
    for layer in architecture.layers(wrapped.model):
        layer.forward = torch.compile(layer.forward, dynamic=False)
    wrapped.mean_loss, wrapped.in_rows = torch.compile(wrapped.mean_loss, dynamic=False), False


def environment() -> dict[str, str]:
    """Versions and hardware that numbers may depend on."""
    return {
        "python": platform.python_version(),
        "hardware": torch.cuda.get_device_name() if torch.cuda.is_available() else processor(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "transformers": transformers.__version__,
        "composer": version("mosaicml"),
        "streaming": version("mosaicml-streaming"),
    }


def gradient_excess(device: torch.device) -> float:
    """What sharded gradients are, over their mean over the ranks, as a module of one weight a rank shows.

    1 with NCCL, the number of ranks with gloo, which sums where torch asks for the mean (seen in torch 2.7).
    """
    ranks = torch.distributed.get_world_size()
    probe = torch.nn.Linear(ranks, 1, bias=False, device=device)
    fully_shard(probe, mesh=init_device_mesh(device.type, (ranks,)))
    probe(torch.ones((1, ranks), device=device)).sum().backward()
    return probe.weight.grad.full_tensor()[0, 0].item()


# -- how many sequences fit


def trial(wrapped: CausalLM, optimizer: torch.optim.Optimizer, batch: torch.Tensor) -> None:
    """One forward and backward pass beside all that a later one finds in memory; nothing of it stays."""
    # AdamW makes its two moments at its first update.
    fresh = [parameter for parameter in wrapped.parameters() if parameter not in optimizer.state]
    moments = [torch.empty_like(parameter) for parameter in 2 * fresh]
    try:
        wrapped.loss(wrapped(batch), batch).backward()
    finally:
        wrapped.zero_grad(set_to_none=True)
        del moments


def fits_by_trial(attempt: Callable[[int], None]) -> Callable[[int], bool]:
    """Whether an attempt of some size ends without an out-of-memory error."""

    def fits(size: int) -> bool:
        with suppress(torch.OutOfMemoryError):
            attempt(size)
            return True
        return False

    return fits


def fits_by_measure(
    attempt: Callable[[int], None], peak: Callable[[], int], memory: int
) -> Callable[[int], bool]:
    """Whether the memory would do, as extrapolated from the peaks (bytes) up to one sequence and to two.

    For sharded models, of whose ranks none may run out of memory alone: the others would wait for it.
    """
    peaks = []
    for size in (1, 2):
        attempt(size)
        peaks.append(peak())
    return lambda size: peaks[0] + (size - 1) * max(peaks[1] - peaks[0], 0) <= USABLE * memory


def largest_that_fits(
    share: int, fits: Callable[[int], bool], agree: Callable[[bool], bool], where: str
) -> int:
    """`share`, or the first of its half, quarter, ... that fits on all ranks, as `agree` says."""
    while not agree(fits(share)):
        if share == 1:
            do = "Turn on 'activation_checkpointing', shard with 'fsdp', or take GPUs with more memory."
            raise UserError("not even one sequence fits into the GPU's memory.", where=where, do=do)
        share //= 2
    return share


def cuda_memory() -> int:
    """Bytes that this process may have of the GPU's memory; its peak is counted from now on."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved()
