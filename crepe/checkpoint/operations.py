"""What is computed with packed weights: through the operations, whose dispatcher decides what runs."""

from __future__ import annotations

import torch
from torch import Tensor

from crepe.kernels.operations import colblock_linear as colblock
from crepe.kernels.operations import sp24_linear as sp24
from crepe.kernels.operations.bitmap_pack import OPERATION as BITMAP_PACK
from crepe.kernels.operations.bitmap_unpack import OPERATION as BITMAP_UNPACK
from crepe.kernels.operations.sp24_unpack import OPERATION as SP24_UNPACK
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


def sp24_unpack(values: Tensor, meta: Tensor) -> Tensor:
    """The dense (out, in) of a 2:4 weight."""
    found: Tensor = SP24_UNPACK.run(values, meta)
    return found


def bitmap_pack(weight: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
    """The kept values and the bits of a parameter of any shape. kept: of its shape, on its device."""
    flat, own = weight.flatten(0, -2).contiguous(), kept.flatten(0, -2).contiguous()
    values, bits = BITMAP_PACK.run(flat, own, int(torch.count_nonzero(own)))
    return values, bits


def bitmap_unpack(values: Tensor, bits: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The parameter of `shape`, zero where nothing was kept."""
    found: Tensor = BITMAP_UNPACK.run(values, bits, list(shape))
    return found
