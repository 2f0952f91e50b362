"""Score and selection of N:M in one read of the weight: one program takes a few rows of a run of columns."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from crepe.kernels.triton.launch import cdiv, factors_of, tile_of
from crepe.kernels.triton.scores import (
    join4,
    join8,
    kept_of_four,
    ranks4,
    ranks8,
    score,
    split4,
    split8,
    tile_of_columns,
)

ROWS = 4
WARPS = 4


@triton.jit
def n_of_m_kernel(
    values,
    norm,
    row,
    column,
    kept,
    outputs,
    K: tl.constexpr,
    N: tl.constexpr,
    M: tl.constexpr,
    FACTORS: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
):
    columns, inside, norms, shares = tile_of_columns(norm, column, tl.program_id(1), K, FACTORS, TILE)
    for step in tl.static_range(ROWS):
        line = tl.program_id(0) * ROWS + step
        here = inside & (line < outputs)
        value = tl.load(values + line.to(tl.int64) * K + columns, mask=here, other=0.0).to(tl.float32)
        own = tl.load(row + line, mask=line < outputs, other=0.0) if FACTORS > 1 else 0.0
        found = score(value, norms, own, shares, FACTORS)
        keep = best_of_4(found, N, TILE // 4) if M == 4 else best_of_8(found, N, TILE // 8)
        tl.store(kept + line.to(tl.int64) * K + columns, keep, mask=here)


@triton.jit
def best_of_4(found, N: tl.constexpr, GROUPS: tl.constexpr):
    a, b, c, d = split4(found, GROUPS)
    if N == 2:
        ka, kb, kc, kd = kept_of_four(a, b, c, d)
        kept = join4(ka, kb, kc, kd, GROUPS).to(tl.uint8)
    else:
        ra, rb, rc, rd = ranks4(a, b, c, d)
        kept = join4(chosen(ra, N), chosen(rb, N), chosen(rc, N), chosen(rd, N), GROUPS)
    return kept


@triton.jit
def best_of_8(found, N: tl.constexpr, GROUPS: tl.constexpr):
    a, b, c, d, e, f, g, h = split8(found, GROUPS)
    ra, rb, rc, rd, re, rf, rg, rh = ranks8(a, b, c, d, e, f, g, h)
    ka, kb, kc, kd = chosen(ra, N), chosen(rb, N), chosen(rc, N), chosen(rd, N)
    ke, kf, kg, kh = chosen(re, N), chosen(rf, N), chosen(rg, N), chosen(rh, N)
    return join8(ka, kb, kc, kd, ke, kf, kg, kh, GROUPS)


@triton.jit
def chosen(rank, N: tl.constexpr):
    return (rank < N).to(tl.uint8)


def select_n_of_m(
    values: Tensor, n: int, m: int, norm: Tensor | None, row: Tensor | None, column: Tensor | None
) -> Tensor:
    """See `crepe.kernels.reference.selection.select_n_of_m`; m is 4 or 8."""
    outputs, inputs = values.shape
    kept = torch.empty_like(values, dtype=torch.bool)
    tile = tile_of(inputs, 1024)
    grid = (cdiv(outputs, ROWS), cdiv(inputs, tile))
    n_of_m_kernel[grid](
        values,
        norm,
        row,
        column,
        kept.view(torch.uint8),
        outputs,
        K=inputs,
        N=n,
        M=m,
        FACTORS=factors_of(norm, row),
        ROWS=ROWS,
        TILE=tile,
        num_warps=WARPS,
    )
    return kept
