"""Multiplying with packed weights: the one place that decides what runs."""

from __future__ import annotations

from torch import Tensor

from crepe.kernels.reference import colblock, sp24
from crepe.masks import ColBlock


def sp24_linear(inputs: Tensor, values: Tensor, meta: Tensor, bias: Tensor | None) -> Tensor:
    """inputs (..., in) @ weight^T + bias for a 2:4 weight."""
    return sp24.linear(inputs, values, meta, bias)


def colblock_linear(inputs: Tensor, values: Tensor, blocks: Tensor, block: ColBlock, bias: Tensor | None) -> Tensor:
    """inputs (..., in) @ weight^T + bias for a weight of column blocks."""
    return colblock.linear(inputs, values, blocks, block, bias)
