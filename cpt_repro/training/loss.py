"""The loss of a causal language model: next tokens of whole sequences, as a plain module."""

from __future__ import annotations

import torch
import torch.nn.functional as F

#: Sequences in one forward pass without gradients where nothing is said.
AT_ONCE = 64


def mean_loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy in nats per token, in float32."""
    return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())


class CausalLM(torch.nn.Module):
    """Next-token loss over sequences of L + 1 tokens: every one of L positions predicts its successor."""

    def __init__(self, model: torch.nn.Module):
        super().__init__()
        self.model = model
        self.mean_loss = mean_loss
        self._mask: torch.Tensor | None = None

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        """Logits (n, L, vocabulary) for a batch (n, L + 1) of token ids."""
        inputs = batch[:, :-1]
        if inputs.is_cuda:  # see `Architecture.prepare_attention`
            return self.model(input_ids=inputs, use_cache=False).logits
        # Without a mask transformers looks for packed sequences and builds one, 7 ms a step on a CPU.
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
        """Mean loss of each sequence (n,), float64 on the CPU; `at_once` of them in a pass on `device`."""
        out = []
        for part in tokens.split(at_once):
            part = part.to(device, non_blocking=True)
            logits = self(part).float()
            losses = F.cross_entropy(logits.flatten(0, 1), part[:, 1:].flatten(), reduction="none")
            out.append(losses.view(len(part), -1).double().mean(1))
        return torch.cat(out).cpu()
