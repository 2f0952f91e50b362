"""Structured patterns: whole units of a network are removed, so that what is left can be stored as smaller matrices."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from crepe.errors import CrepeError
from crepe.masks.pattern import Compare, Pattern
from crepe.masks.select import kept_count, select_largest

# What can be removed: an intermediate channel of an MLP, a key-value head with its query heads, a repeated block.
UNITS = ("channel", "head", "block")


@dataclass(frozen=True)
class Structured(Pattern):
    """Whole units. unit: one of UNITS; width: neighbouring columns of a consumer that make up a unit (a channel: 1).

    A unit reaches over several matrices: rows of those that produce it, columns of the one that consumes it. Which
    they are is found in the model; here a mask is whole rows and columns of zeros.
    """

    unit: str
    width: int = 1

    def __str__(self) -> str:
        return self.unit

    def obstacle(self, shape: tuple[int, ...]) -> str | None:
        if shape[-1] % self.width:
            return f"its {shape[-1]} inputs are no multiple of {self.width}"
        return None

    def select(self, score: Tensor, sparsity: float, compare: Compare = "tensor") -> Tensor:
        """Whole units of `width` columns with the largest sums. score: (out, in) of a consumer."""
        reason = self.obstacle(tuple(score.shape))
        if reason:
            raise CrepeError(f"pattern {self} does not fit a matrix of shape {tuple(score.shape)}: {reason}")
        units = score.sum(0, dtype=torch.float64).reshape(-1, self.width).sum(1)
        kept = select_largest(units[None], kept_count(len(units), sparsity))[0]
        return kept.repeat_interleave(self.width).expand(score.shape).clone()

    def violations(self, mask: Tensor) -> int:
        """Columns with a zero that neither a whole row nor a whole column of zeros accounts for."""
        rows, columns = mask.any(1), mask.any(0)
        broken = ~mask & rows[:, None] & columns
        return int(torch.count_nonzero(broken.any(0)))


def kept_units(total: int, sparsity: float, multiple: int = 1) -> int:
    """Units kept of `total`: see `kept_count`, rounded up to a multiple (never above `total`)."""
    kept = kept_count(total, sparsity)
    return min(-(-kept // multiple) * multiple, total)
