"""Absolute sums of rows and columns in one read of the weight: partial sums of tiles in float64, then their sums.

No atomics. In float64 the order of the additions does not show after the rounding to float32, so the result equals
the reference's on any device.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from crepe.kernels.triton.launch import cdiv, tile_of

ROWS = 64
# Weights of one thread in a row: enough for the sum over a tile to weigh little.
WEIGHTS = 32


@triton.jit
def sums_kernel(weight, row_parts, column_parts, outputs, K: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr):
    """row_parts: (column tiles, out), column_parts: (row tiles, in), both float64."""
    columns = tl.program_id(1) * TILE + tl.arange(0, TILE)
    inside = columns < K
    total = tl.zeros((TILE,), tl.float64)
    for step in range(ROWS):
        line = tl.program_id(0) * ROWS + step
        here = inside & (line < outputs)
        value = tl.load(weight + line.to(tl.int64) * K + columns, mask=here, other=0.0).to(tl.float32)
        size = tl.abs(value).to(tl.float64)
        total += size
        part = row_parts + tl.program_id(1).to(tl.int64) * outputs + line
        tl.store(part, tl.sum(size, 0), mask=line < outputs)
    tl.store(column_parts + tl.program_id(0).to(tl.int64) * K + columns, total, mask=inside)


def absolute_sums(weight: Tensor) -> tuple[Tensor, Tensor]:
    """See `crepe.kernels.reference.sums.absolute_sums`."""
    outputs, inputs = weight.shape
    tile = tile_of(inputs, 4096)
    grid = (cdiv(outputs, ROWS), cdiv(inputs, tile))
    row_parts = weight.new_empty(grid[1], outputs, dtype=torch.float64)
    column_parts = weight.new_empty(grid[0], inputs, dtype=torch.float64)
    sums_kernel[grid](
        weight,
        row_parts,
        column_parts,
        outputs,
        K=inputs,
        ROWS=ROWS,
        TILE=tile,
        num_warps=max(1, tile // (32 * WEIGHTS)),
    )
    return row_parts.sum(0).float(), column_parts.sum(0).float()
