"""Channels that come back while a network is trained and pruned together (CHEX, Hou et al., CVPR 2022)."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def regrowth_share(epoch: int, until: int, initial: float) -> float:
    """delta = initial * (1 + cos(pi epoch / until)) / 2: falls from `initial` to 0 at `until`, and stays there."""
    return initial * (1 + math.cos(math.pi * epoch / until)) / 2 if epoch < until else 0.0


def regrown(selected: Tensor, width: int, total: int, generator: torch.Generator) -> Tensor:
    """Filters that are added at random until `total` of `width` are alive: int64, rising, none of `selected`."""
    others = torch.ones(width, dtype=torch.bool)
    others[selected] = False
    candidates = others.nonzero()[:, 0]
    drawn = torch.randperm(len(candidates), generator=generator)[: max(total - len(selected), 0)]
    return candidates[drawn].sort().values
