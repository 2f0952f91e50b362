"""Running sums over calibration activations. Sums add over batches, processes and runs."""

from __future__ import annotations

from collections.abc import Collection
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
    """Sums for one weight matrix. square_sum: (in,) float64; tokens: how many inputs were seen.

    total: (in,) float64, the sum of the inputs; gram: (in, in) float32, the sum of x x^T; each only where asked for.
    """

    square_sum: Tensor
    tokens: int = 0
    total: Tensor | None = None
    gram: Tensor | None = None

    @classmethod
    def empty(
        cls, channels: int, device: torch.device | str = "cpu", needs: Collection[str] = frozenset()
    ) -> ChannelSums:
        square_sum = torch.zeros(channels, dtype=torch.float64, device=device)
        total = torch.zeros_like(square_sum) if "mean" in needs else None
        gram = torch.zeros(channels, channels, device=device) if "gram" in needs else None
        return cls(square_sum, 0, total, gram)

    @classmethod
    def of(cls, inputs: Tensor, needs: Collection[str] = frozenset()) -> ChannelSums:
        """The sums over `inputs` (..., tokens, in)."""
        rows = inputs.reshape(-1, inputs.shape[-1])
        total = rows.sum(0, dtype=torch.float64) if "mean" in needs else None
        exact = rows.float()
        return cls(channel_square_sum(inputs), len(rows), total, exact.T @ exact if "gram" in needs else None)

    def add(self, other: ChannelSums) -> None:
        """Add the sums of more inputs, of the same kinds."""
        self.tokens += other.tokens
        for name in self.present:
            getattr(self, name).add_(getattr(other, name))

    def reorder(self, order: Tensor) -> None:
        """Follow a matrix whose input channels were reordered: channel j is now what was order[j]. order: (in,)."""
        for name in self.present:
            tensor = getattr(self, name)[order]
            setattr(self, name, tensor[:, order] if name == "gram" else tensor)

    @property
    def present(self) -> list[str]:
        """Names of what is summed, in a fixed order."""
        return [name for name in ("square_sum", "total", "gram") if getattr(self, name) is not None]

    @property
    def norm(self) -> Tensor:
        """||X_j||_2 over all tokens, (in,) float32."""
        return self.square_sum.sqrt().float()

    def statistics(self) -> dict[str, Tensor]:
        """What criteria and refinements read: norm (in,), tokens (), and where they were summed mean (in,) and
        gram (in, in), all float32."""
        found = {"norm": self.norm, "tokens": torch.tensor(float(self.tokens))}
        if self.total is not None:
            found["mean"] = (self.total / max(self.tokens, 1)).float()
        if self.gram is not None:
            found["gram"] = self.gram
        return found


def fill_unseen_experts(sums: list[ChannelSums]) -> list[ChannelSums]:
    """The rule for experts that no token was routed to: they take the mean over the experts of their layer.

    Where no expert was seen at all, every channel counts the same, none correlates with another, and the score falls
    back to the weights alone.
    """
    seen = [s for s in sums if s.tokens]
    if len(seen) == len(sums):
        return sums
    stand_in = _stand_in(sums[0], seen)
    return [s if s.tokens else stand_in for s in sums]


def _stand_in(unseen: ChannelSums, seen: list[ChannelSums]) -> ChannelSums:
    if seen:
        means = {name: sum(getattr(s, name) for s in seen) / len(seen) for name in unseen.present}
        return ChannelSums(tokens=max(sum(s.tokens for s in seen) // len(seen), 1), **means)
    ones = torch.ones_like(unseen.square_sum)
    neutral = {"square_sum": ones, "total": torch.zeros_like(ones), "gram": ones.float().diag()}
    return ChannelSums(tokens=1, **{name: neutral[name] for name in unseen.present})
