"""Multiplying with packed weights: through the custom operations, whose dispatcher decides what runs."""

from __future__ import annotations

from torch import Tensor

from crepe.kernels.operations import colblock_linear as colblock
from crepe.kernels.operations import sp24_linear as sp24
from crepe.masks import ColBlock


def sp24_linear(inputs: Tensor, values: Tensor, meta: Tensor, bias: Tensor | None) -> Tensor:
    """inputs (..., in) @ weight^T + bias for a 2:4 weight."""
    found: Tensor = sp24.sp24_linear(inputs, values, meta, bias)
    return found


def sp24_uncovered(inputs: Tensor, values: Tensor, meta: Tensor, bias: Tensor | None) -> str | None:
    """Why no kernel would compute `sp24_linear` of these, None where one would."""
    return sp24.OPERATION.uncovered(inputs, values, meta, bias)


def colblock_linear(inputs: Tensor, values: Tensor, blocks: Tensor, block: ColBlock, bias: Tensor | None) -> Tensor:
    """inputs (..., in) @ weight^T + bias for a weight of column blocks."""
    found: Tensor = colblock.colblock_linear(inputs, values, blocks, block.rows, block.columns, bias)
    return found


def colblock_uncovered(
    inputs: Tensor, values: Tensor, blocks: Tensor, block: ColBlock, bias: Tensor | None
) -> str | None:
    """Why no kernel would compute `colblock_linear` of these, None where one would."""
    return colblock.OPERATION.uncovered(inputs, values, blocks, block.rows, block.columns, bias)
