"""The best of every row, exactly: one program holds a row and finds its threshold bit by bit."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from crepe.kernels.triton.launch import factors_of, tile_of
from crepe.kernels.triton.scores import key, score, tile_of_columns

# Threads are added with the row, so that each holds 32 keys.
KEYS = 32


@triton.jit(do_not_specialize=["keep"])
def row_threshold_kernel(
    values, norm, row, column, kept, keep, K: tl.constexpr, FACTORS: tl.constexpr, TILE: tl.constexpr
):
    line = tl.program_id(0)
    start = line.to(tl.int64) * K
    columns, inside, norms, shares = tile_of_columns(norm, column, 0, K, FACTORS, TILE)
    value = tl.load(values + start + columns, mask=inside, other=0.0).to(tl.float32)
    own = tl.load(row + line) if FACTORS > 1 else 0.0
    found = key(score(value, norms, own, shares, FACTORS), FACTORS)
    # As an unsigned number with its sign bit turned; 0 is below every score and fills the tile.
    order = tl.where(inside, found.to(tl.uint32, bitcast=True) ^ 0x80000000, 0)
    threshold = tl.zeros((), tl.uint32)
    bit = tl.full((), 0x80000000, tl.uint32)
    for _ in range(32):
        candidate = threshold | bit
        enough = tl.sum((order >= candidate).to(tl.int32), 0) >= keep
        threshold = tl.where(enough, candidate, threshold)
        bit >>= 1
    above = order > threshold
    tied = order == threshold
    missing = keep - tl.sum(above.to(tl.int32), 0)
    chosen = above | (tied & (tl.cumsum(tied.to(tl.int32), 0) <= missing))
    tl.store(kept + start + columns, chosen.to(tl.uint8), mask=inside)


def select_by_row(values: Tensor, keep: int, norm: Tensor | None, row: Tensor | None, column: Tensor | None) -> Tensor:
    """See `crepe.kernels.reference.selection.select_by_row`; rows of at most 32768."""
    outputs, inputs = values.shape
    if not 0 < keep < inputs:
        return torch.full_like(values, keep > 0, dtype=torch.bool)
    kept = torch.empty_like(values, dtype=torch.bool)
    tile = tile_of(inputs, 1 << 15)
    row_threshold_kernel[(outputs,)](
        values,
        norm,
        row,
        column,
        kept.view(torch.uint8),
        keep,
        K=inputs,
        FACTORS=factors_of(norm, row),
        TILE=tile,
        num_warps=min(32, max(1, tile // (32 * KEYS))),
    )
    return kept
