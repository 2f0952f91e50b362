"""Running sums over calibration activations. Sums add over batches, processes and runs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


def channel_square_sum(inputs: Tensor) -> Tensor:
    """Sum of squares of every input channel: (..., tokens, in) -> (in,) float64.

    Each sequence is summed in float32, the sequences in float64, so that the result does not depend on how they
    were batched beyond the last digits of float64.
    """
    per_sequence = inputs.float().square().sum(-2)
    return per_sequence.reshape(-1, inputs.shape[-1]).double().sum(0)


@dataclass
class ChannelSums:
    """Sums for one weight matrix. square_sum: (in,) float64; tokens: how many inputs were seen."""

    square_sum: Tensor
    tokens: int = 0

    @classmethod
    def empty(cls, channels: int, device: torch.device | str = "cpu") -> ChannelSums:
        return cls(torch.zeros(channels, dtype=torch.float64, device=device))

    def add(self, square_sum: Tensor, tokens: int) -> None:
        self.square_sum += square_sum
        self.tokens += tokens

    @property
    def norm(self) -> Tensor:
        """||X_j||_2 over all tokens, (in,) float32."""
        return self.square_sum.sqrt().float()


def fill_unseen_experts(sums: list[ChannelSums]) -> list[ChannelSums]:
    """The rule for experts that no token was routed to: they take the mean over the experts of their layer.

    Where no expert was seen at all, every channel counts the same and the score falls back to the weights alone.
    """
    seen = [s for s in sums if s.tokens]
    if len(seen) == len(sums):
        return sums
    if seen:
        mean = torch.stack([s.square_sum for s in seen]).mean(0)
    else:
        mean = torch.ones_like(sums[0].square_sum)
    return [s if s.tokens else ChannelSums(mean) for s in sums]
