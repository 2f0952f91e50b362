"""The better half of every row, beside sorting the rows."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from crepe.kernels.bench.base import BENCHES, Case
from crepe.kernels.bench.weights import WEIGHT, selection
from crepe.kernels.operations.select_by_row import OPERATION
from crepe.kernels.reference.selection import score_of


def cases() -> Iterator[Case]:
    return selection(OPERATION, lambda outputs, inputs: (inputs // 2,), WEIGHT + 1, {"torch.sort": by_sorting})


def by_sorting(values: Tensor, keep: int, norm: Tensor | None, row: Tensor | None, column: Tensor | None) -> Tensor:
    """The same mask by a stable sort."""
    order = score_of(values, norm, row, column).sort(dim=-1, descending=True, stable=True).indices
    return torch.zeros_like(values, dtype=torch.bool).scatter_(-1, order[..., :keep], True)


BENCHES.add("select_by_row", cases)
