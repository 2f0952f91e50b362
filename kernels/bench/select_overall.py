"""The better half of a whole matrix, beside sorting it."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from crepe.kernels.bench.base import BENCHES, Case
from crepe.kernels.bench.weights import WEIGHT, selection
from crepe.kernels.operations.select_overall import OPERATION
from crepe.kernels.reference.selection import score_of


def cases() -> Iterator[Case]:
    baselines = {"torch.sort": by_sorting}
    return selection(OPERATION, lambda outputs, inputs: (outputs * inputs // 2,), WEIGHT + 1, baselines)


def by_sorting(values: Tensor, keep: int, norm: Tensor | None, row: Tensor | None, column: Tensor | None) -> Tensor:
    """The same mask by a stable sort."""
    order = score_of(values, norm, row, column).flatten().sort(descending=True, stable=True).indices
    kept = torch.zeros(values.numel(), dtype=torch.bool, device=values.device)
    return kept.scatter_(0, order[:keep], True).reshape(values.shape)


BENCHES.add("select_overall", cases)
