"""Balanced taps: `tap:G`, single weights of depth-wise kernels with the same load in every group of G channels."""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from torch import Tensor

from crepe.errors import UsageError
from crepe.masks.pattern import Compare, Pattern
from crepe.masks.select import select_largest

# A share such as 0.29 of 100 weights is 28.999999999999996 in floating point and means 29.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Taps(Pattern):
    """Zeros anywhere in a group of `group` channels, the same number of them in every group.

    The weight is seen as (channels, taps). A group of G channels is one product of the diagonal-wise refactorisation,
    in which a removed tap is a removed column, so equal counts are equal work (DEPrune, NeurIPS 2024: balanced
    workload tuning). A group loses floor(sparsity * weights) taps; the last one may have fewer channels.
    """

    group: int

    def __str__(self) -> str:
        return f"tap:{self.group}"

    def select(self, score: Tensor, sparsity: float, compare: Compare = "tensor") -> Tensor:
        """score: (channels, taps), higher = keep; among equals the lower index of a group is kept."""
        return torch.cat([_largest(part, sparsity) for part in self._parts(score)]).reshape(score.shape)

    def violations(self, mask: Tensor) -> int:
        """Groups that keep fewer taps than the fullest whole group, and a short one that keeps another share."""
        whole, short = self._parts(mask)
        kept, size = whole.sum(-1), whole.shape[-1]
        broken = int(torch.count_nonzero(kept < kept.max())) if len(kept) else 0
        if len(kept) and short.numel():
            zeros = size - int(kept.max())
            lost = short.numel() - int(torch.count_nonzero(short))
            # Shares from zeros / size up to, not including, (zeros + 1) / size give the whole groups their zeros.
            least, most = zeros * short.numel() // size, -(-(zeros + 1) * short.numel() // size) - 1
            broken += not least <= lost <= most
        return broken

    def _parts(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """(channels, taps) -> whole groups (n, group * taps) and the short one (0 or 1, rest * taps)."""
        channels, taps = values.shape
        rest = channels % self.group
        whole, short = values[: channels - rest], values[channels - rest :]
        return whole.reshape(-1, self.group * taps), short.reshape(min(rest, 1), rest * taps)


def removed_count(total: int, sparsity: float) -> int:
    """floor(sparsity * total), exact for shares that floating point holds a little too small."""
    return min(int(total * sparsity + _ROUNDING), total)


def _largest(groups: Tensor, sparsity: float) -> Tensor:
    """(n, weights) -> the mask, flat."""
    size = groups.shape[-1]
    return select_largest(groups, size - removed_count(size, sparsity)).reshape(-1)


def parse_taps(text: str) -> Taps:
    """`tap:G` with G at least 1.

    Raises:
        UsageError: anything else.
    """
    found = re.fullmatch(r"tap:([1-9]\d*)", text.strip())
    if not found:
        raise UsageError(f"impossible pattern {text!r}: use tap:G for groups of G channels, such as tap:32 (or 2:4)")
    return Taps(int(found[1]))
