"""The mean of |W| in the window around every weight, added in the order of the definition."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from crepe.kernels.triton.launch import cdiv, tile_of

ROWS = 8
WARPS = 4


@triton.jit
def box_mean_kernel(
    weight,
    mean,
    outputs,
    K: tl.constexpr,
    REACH: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
):
    """REACH: entries of the window to each side of its centre."""
    # Said to be scattered: windows cut through every vector, so neighbouring threads take neighbouring entries.
    columns = tl.max_contiguous(tl.program_id(1) * TILE + tl.arange(0, TILE), 1)
    wide = tl.maximum(tl.minimum(columns + REACH, K - 1) - tl.maximum(columns - REACH, 0) + 1, 1)
    for step in range(ROWS):
        line = tl.program_id(0) * ROWS + step
        total = tl.zeros((TILE,), tl.float32)
        for down in tl.static_range(2 * REACH + 1):
            near = line + down - REACH
            start = near.to(tl.int64) * K
            # No entry of a row outside of the matrix counts; as unsigned numbers, places left of it are large.
            end = tl.where((near >= 0) & (near < outputs), K, 0).to(tl.uint32)
            for right in tl.static_range(2 * REACH + 1):
                place = columns + right - REACH
                inside = place.to(tl.uint32, bitcast=True) < end
                total += tl.abs(tl.load(weight + start + place, mask=inside, other=0.0).to(tl.float32))
        high = tl.maximum(tl.minimum(line + REACH, outputs - 1) - tl.maximum(line - REACH, 0) + 1, 1)
        exact = tl.math.div_rn(total, (wide * high).to(tl.float32))
        tl.store(mean + line.to(tl.int64) * K + columns, exact, mask=(columns < K) & (line < outputs))


def box_mean(weight: Tensor, kernel: int) -> Tensor:
    """See `crepe.kernels.reference.sums.box_mean`; for small windows: every entry is a load of its own, found in the
    L1 cache, and the loop over them is unrolled."""
    outputs, inputs = weight.shape
    mean = torch.empty_like(weight, dtype=torch.float32)
    tile = tile_of(inputs, 1024)
    grid = (cdiv(outputs, ROWS), cdiv(inputs, tile))
    box_mean_kernel[grid](weight, mean, outputs, K=inputs, REACH=kernel // 2, ROWS=ROWS, TILE=tile, num_warps=WARPS)
    return mean
