"""The loss of a causal language model: next tokens of whole sequences, as a plain module."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

#: Sequences in one forward pass without gradients where nothing is said.
AT_ONCE = 64
#: Positions whose logits are there at a time on a CPU: few enough to stay in a core's cache.
ROWS = 128


def mean_loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy in nats per token, in float32."""
    return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())


class _MeanLossInRows(torch.autograd.Function):
    """Mean cross-entropy of the logits `hidden @ head.T` (N, width) x (V, width), `ROWS` positions at a time.

    The gradient of a position's logits, softmax minus one at the target, is used at once: N x V numbers are
    never in memory. The same mathematics as `mean_loss`, summed in another order.
    """

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, head: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        of_hidden, of_head = torch.empty_like(hidden), torch.zeros_like(head)
        total = torch.zeros((), dtype=torch.float64)
        for start in range(0, len(hidden), ROWS):
            rows = slice(start, start + ROWS)
            part, logits = hidden[rows], hidden[rows] @ head.T
            most, picked = logits.amax(1, keepdim=True), logits.gather(1, targets[rows, None])
            powers = logits.sub_(most).exp_()
            sums = powers.sum(1, keepdim=True)
            total += (sums.log() + most - picked).sum(dtype=torch.float64)
            # Of softmax, powers / sums; the ones at the targets come last.
            torch.mm(powers, head, out=of_hidden[rows]).div_(sums)
            of_head.addmm_(powers.T, part / sums)
        of_hidden.sub_(head[targets])
        of_head.index_add_(0, targets, hidden, alpha=-1)
        ctx.save_for_backward(of_hidden, of_head)
        return (total / len(hidden)).float()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        of_hidden, of_head = ctx.saved_tensors
        share = gradient / len(of_hidden)
        return of_hidden * share, of_head * share, None


class CausalLM(torch.nn.Module):
    """Next-token loss over sequences of L + 1 tokens: every one of L positions predicts its successor."""

    def __init__(self, model: torch.nn.Module):
        super().__init__()
        self.model = model
        self.mean_loss = mean_loss
        #: Whether a CPU makes logits a few rows at a time; not compiled or sharded ones.
        self.in_rows = True
        self._mask: torch.Tensor | None = None

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        """Of a batch (n, L + 1) the logits (n, L, V); where those are made in rows, states (n, L, width)."""
        inputs = batch[:, :-1]
        if inputs.is_cuda:  # see `Architecture.prepare_attention`
            return self.model(input_ids=inputs, use_cache=False).logits
        # Without a mask transformers looks for packed sequences and builds one, 7 ms a step on a CPU.
        if self._mask is None or self._mask.shape != inputs.shape:
            self._mask = torch.ones(inputs.shape, dtype=torch.bool, device=inputs.device)
        asked = {"input_ids": inputs, "attention_mask": self._mask, "use_cache": False}
        return self.model.base_model(**asked)[0] if self.in_rows else self.model(**asked).logits

    def _head(self, batch: torch.Tensor) -> torch.Tensor | None:
        """Weights (vocabulary, width) of the head, which has no biases, where logits are made in rows."""
        return self.model.get_output_embeddings().weight if self.in_rows and not batch.is_cuda else None

    def loss(self, outputs: torch.Tensor, batch: torch.Tensor) -> torch.Tensor:
        """Mean cross-entropy in nats per token, of what `forward` gave."""
        targets = batch[:, 1:]
        if (head := self._head(batch)) is not None:
            return _MeanLossInRows.apply(outputs.flatten(0, 1), head, targets.flatten())
        return self.mean_loss(outputs, targets)

    @torch.no_grad()
    def sequence_losses(
        self, tokens: torch.Tensor, at_once: int = AT_ONCE, device: torch.device | None = None
    ) -> torch.Tensor:
        """Mean loss of each sequence (n,), float64 on the CPU; `at_once` of them in a pass on `device`."""
        out = []
        for part in tokens.split(at_once):
            part = part.to(device, non_blocking=True)
            outputs, targets = self(part).flatten(0, 1), part[:, 1:].flatten()
            if (head := self._head(part)) is not None:
                rows = zip(outputs.split(ROWS), targets.split(ROWS), strict=True)
                losses = torch.cat([F.cross_entropy(o @ head.T, t, reduction="none") for o, t in rows])
            else:
                losses = F.cross_entropy(outputs.float(), targets, reduction="none")
            out.append(losses.view(len(part), -1).double().mean(1))
        return torch.cat(out).cpu()
