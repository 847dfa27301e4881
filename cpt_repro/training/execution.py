"""How training is spread over hardware, as far as torch and transformers go: attention, compiling, sharding, memory."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers.models.gpt_neox.modeling_gpt_neox import GPTNeoXForCausalLM, GPTNeoXLayer

from cpt_repro.declarations.scale import Execution
from cpt_repro.errors import UserError

#: Our attention's name among those of transformers.
CAUSAL = "causal_without_mask"
#: Part of a GPU's memory that an estimated micro-batch may fill; the rest is for fragmentation.
USABLE = 0.9


def choose_kernels(deterministic: bool, device: str) -> None:
    """Deterministic kernels only, or the fastest. To be called before the GPU is first used.

    TF32 is off in either case (the trainer sees to it): matrix products are bf16 by autocast anyway, and the few in
    float32 are those of the rotary angles, which its 11 bits would falsify.
    """
    if device == "gpu" and deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(deterministic)
    # Filling fresh memory would only find reads of uninitialised memory, at a cost in every step.
    torch.utils.deterministic.fill_uninitialized_memory = False
    torch.backends.cudnn.benchmark = device == "gpu" and not deterministic


def _causal_attention(module, query, key, value, attention_mask, dropout=0.0, scaling=None, **_):
    """Attention of whole sequences, which need no mask, so that torch may take its flash kernel."""
    out = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout, scale=scaling, is_causal=True)
    return out.transpose(1, 2).contiguous(), None


def is_layer(module: torch.nn.Module) -> bool:
    """Whether `module` is what FSDP gathers at a time: one layer. Embeddings and head are the root's."""
    return isinstance(module, GPTNeoXLayer)


def prepare(model: GPTNeoXForCausalLM, execution: Execution, device: str) -> None:
    """Attention, activation checkpointing and the sharding policy, before the model is given to Composer."""
    if device == "gpu":
        # A mask of ones would be looked at in every forward pass, for which the GPU must be waited for; without
        # one transformers builds one of its own. Under a name that has no mask function it does neither.
        from transformers import AttentionInterface

        AttentionInterface.register(CAUSAL, _causal_attention)
        model.set_attn_implementation(CAUSAL)
    if execution.activation_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.fsdp_wrap_fn = is_layer


def compile_parts(wrapped: torch.nn.Module) -> None:
    """Compiles the layers' forward and the loss, in place.

    All layers share one compilation, names of parameters stay as they are, and what FSDP and checkpointing put around
    a layer stays outside. The compiled loss needs no float32 copy of the logits.
    """
    for layer in wrapped.model.gpt_neox.layers:
        layer.forward = torch.compile(layer.forward, dynamic=False)
    wrapped.mean_loss = torch.compile(wrapped.mean_loss, dynamic=False)


# -- sharded tensors, and whole ones


def gradient_excess(device: torch.device) -> float:
    """What sharded gradients are multiplied by beside their mean over the ranks, as a module of one weight a rank
    shows: 1 with NCCL; with gloo, which sums where torch asks for the mean (seen in torch 2.7), the number of ranks.
    """
    ranks = torch.distributed.get_world_size()
    probe = torch.nn.Linear(ranks, 1, bias=False, device=device)
    fully_shard(probe, mesh=init_device_mesh(device.type, (ranks,)))
    probe(torch.ones((1, ranks), device=device)).sum().backward()
    return probe.weight.grad.full_tensor()[0, 0].item()


def whole(tensor: torch.Tensor, wanted: bool) -> torch.Tensor | None:
    """The tensor on the CPU, gathered from all ranks where it is sharded; None where it is not `wanted`.

    One tensor at a time is whole on the device. Every rank must call this in the same order.
    """
    if isinstance(tensor, DTensor):
        tensor = tensor.full_tensor()
    return tensor.detach().cpu() if wanted else None


def whole_weights(model: torch.nn.Module, wanted: bool) -> dict[str, torch.Tensor]:
    """The model's whole tensors by name, on the ranks that want them; every rank must call this."""
    return {name: whole(tensor, wanted) for name, tensor in model.state_dict().items()}


def whole_optimizer(optimizer: torch.optim.Optimizer, wanted: bool) -> dict[str, Any]:
    """The optimizer's state as `optimizer.state_dict()` has it where nothing is sharded; every rank must call this."""
    told = optimizer.state_dict()
    state = {
        number: {key: whole(value, wanted) for key, value in values.items()}
        for number, values in sorted(told["state"].items())
    }
    return {"state": state, "param_groups": told["param_groups"]}


def spread_optimizer(optimizer: torch.optim.Optimizer, told: dict[str, Any]) -> None:
    """Loads a whole state into the optimizer of a sharded model; every rank takes its part of what it has read."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]

    def part(parameter: DTensor, value: torch.Tensor) -> torch.Tensor:
        if value.shape != parameter.shape:  # the number of updates
            return value
        value = value.to(parameter.device)
        return distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None)

    state = {
        number: {key: part(parameters[number], value) for key, value in values.items()}
        for number, values in told["state"].items()
    }
    optimizer.load_state_dict({"state": state, "param_groups": told["param_groups"]})


# -- how many sequences fit


def trial(wrapped: torch.nn.Module, optimizer: torch.optim.Optimizer, batch: torch.Tensor) -> None:
    """One forward and backward pass beside all that a later one finds in memory; nothing of it stays."""
    # AdamW makes its two moments at its first update.
    moments = [
        torch.empty_like(p) for p in wrapped.parameters() if p not in optimizer.state for _ in range(2)
    ]
    try:
        wrapped.loss(wrapped(batch), batch).backward()
    finally:
        wrapped.zero_grad(set_to_none=True)
        del moments


def fits_by_trial(attempt: Callable[[int], None]) -> Callable[[int], bool]:
    """Whether an attempt of some size ends without an out-of-memory error."""

    def fits(size: int) -> bool:
        try:
            attempt(size)
        except torch.OutOfMemoryError:
            return False
        return True

    return fits


def fits_by_measure(
    attempt: Callable[[int], None], peak: Callable[[], int], memory: int
) -> Callable[[int], bool]:
    """Whether the memory would do, as extrapolated from the peaks (bytes) of one sequence and of two.

    For sharded models, of whose ranks none may run out of memory alone: the others would wait for it in a collective.
    """
    peaks = []
    for size in (1, 2):
        attempt(size)
        peaks.append(peak())
    return lambda size: peaks[0] + (size - 1) * max(peaks[1] - peaks[0], 0) <= USABLE * memory


def largest_that_fits(
    share: int, fits: Callable[[int], bool], agree: Callable[[bool], bool], where: str
) -> int:
    """`share`, or the first of its half, quarter, ... that fits on every rank; `agree` says whether all said yes."""
    size = share
    while not agree(fits(size)):
        if size == 1:
            do = "Turn on 'activation_checkpointing', shard with 'fsdp', or take GPUs with more memory."
            raise UserError("not even one sequence fits into the GPU's memory.", where=where, do=do)
        size //= 2
    return size


def cuda_memory() -> tuple[Callable[[], int], int]:
    """(a function that gives the peak since it was last called, what this process may have), in bytes."""

    def peak() -> int:
        found = torch.cuda.max_memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        return found

    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    return peak, torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved()
