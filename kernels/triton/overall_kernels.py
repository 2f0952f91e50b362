"""Kernels for the threshold of a whole matrix: count against a bracket, gather what is inside, count ties, write the
mask. Every program takes a few rows of a run of columns; tiles are numbered in the order of their weights."""

from __future__ import annotations

import triton
import triton.language as tl

from crepe.kernels.triton.scores import key, score, tile_of_columns

# Below the key of every score: what fills a tile behind the end of the matrix.
OUTSIDE = tl.constexpr(-(1 << 31))


@triton.jit
def keys_of(values, line, columns, here, norms, row, shares, K: tl.constexpr, FACTORS: tl.constexpr):
    """The keys of a tile of a row."""
    own = tl.load(row + line) if FACTORS > 1 else 0.0
    value = tl.load(values + line.to(tl.int64) * K + columns, mask=here, other=0.0).to(tl.float32)
    return tl.where(here, key(score(value, norms, own, shares, FACTORS), FACTORS), OUTSIDE)


@triton.jit
def count_kernel(
    values,
    norm,
    row,
    column,
    bounds,
    counts,
    outputs,
    K: tl.constexpr,
    FACTORS: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
):
    """counts: (2, out, tiles) int32. Against the upper of `bounds` first, then against the lower one: in the upper 16
    bits how many keys are larger, in the lower 16 how many are not smaller. A tile is shorter than 2^16."""
    columns, inside, norms, shares = tile_of_columns(norm, column, tl.program_id(1), K, FACTORS, TILE)
    low, high = tl.load(bounds), tl.load(bounds + 1)
    tiles = tl.num_programs(1)
    for step in tl.static_range(ROWS):
        line = tl.minimum(tl.program_id(0) * ROWS + step, outputs - 1)
        found = keys_of(values, line, columns, inside, norms, row, shares, K, FACTORS)
        place = counts + line * tiles + tl.program_id(1)
        tl.store(place, tl.sum(tl.where(found > high, 65537, tl.where(found == high, 1, 0)), 0))
        tl.store(place + outputs * tiles, tl.sum(tl.where(found > low, 65537, tl.where(found == low, 1, 0)), 0))


@triton.jit
def gather_kernel(
    values,
    norm,
    row,
    column,
    bounds,
    starts,
    gathered,
    outputs,
    capacity,
    K: tl.constexpr,
    FACTORS: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
):
    """gathered: (capacity,) int32, the keys between `bounds`; those of a tile from `starts` (out, tiles) int64 on."""
    columns, inside, norms, shares = tile_of_columns(norm, column, tl.program_id(1), K, FACTORS, TILE)
    low, high = tl.load(bounds), tl.load(bounds + 1)
    for step in tl.static_range(ROWS):
        line = tl.minimum(tl.program_id(0) * ROWS + step, outputs - 1)
        found = keys_of(values, line, columns, inside, norms, row, shares, K, FACTORS)
        between = (found > low) & (found < high)
        start = tl.load(starts + line * tl.num_programs(1) + tl.program_id(1))
        target = start + tl.cumsum(between.to(tl.int32), 0) - 1
        tl.store(gathered + target, found, mask=between & (target < capacity))


@triton.jit
def search_kernel(
    values,
    norm,
    row,
    column,
    state,
    keep,
    OUTPUTS: tl.constexpr,
    K: tl.constexpr,
    FACTORS: tl.constexpr,
    TILE: tl.constexpr,
):
    """Where the bracket missed, one program finds the threshold bit by bit: rare, and much slower than the rest.

    state: (4,) int64: whether it is known (nothing is read then), the threshold, keys above it, keys that equal it.
    """
    if tl.load(state) == 0:
        prefix = tl.zeros((), tl.uint32)
        bit = tl.full((), 0x80000000, tl.uint32)
        for _ in range(32):
            candidate = prefix | bit
            threshold = (candidate ^ 0x80000000).to(tl.int32, bitcast=True)
            enough = at_least(values, norm, row, column, threshold, OUTPUTS, K, FACTORS, TILE) >= keep
            prefix = tl.where(enough, candidate, prefix)
            bit >>= 1
        threshold = (prefix ^ 0x80000000).to(tl.int32, bitcast=True)
        above = at_least(values, norm, row, column, threshold + 1, OUTPUTS, K, FACTORS, TILE)
        ties = at_least(values, norm, row, column, threshold, OUTPUTS, K, FACTORS, TILE) - above
        tl.store(state + 1, threshold.to(tl.int64))
        tl.store(state + 2, above)
        tl.store(state + 3, ties)


@triton.jit
def at_least(
    values,
    norm,
    row,
    column,
    threshold,
    OUTPUTS: tl.constexpr,
    K: tl.constexpr,
    FACTORS: tl.constexpr,
    TILE: tl.constexpr,
):
    """How many keys of the matrix are not below `threshold`, int64."""
    count = tl.zeros((), tl.int64)
    for tile in range(OUTPUTS * ((K + TILE - 1) // TILE)):
        line = tl.full((), tile // ((K + TILE - 1) // TILE), tl.int32)
        place = tile % ((K + TILE - 1) // TILE)
        columns, inside, norms, shares = tile_of_columns(norm, column, place, K, FACTORS, TILE)
        found = keys_of(values, line, columns, inside, norms, row, shares, K, FACTORS)
        count += tl.sum((found >= threshold).to(tl.int32), 0)
    return count


@triton.jit
def ties_kernel(
    values,
    norm,
    row,
    column,
    state,
    counts,
    outputs,
    keep,
    K: tl.constexpr,
    FACTORS: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
):
    """counts: (out, tiles) int32, the keys that equal the threshold; left at 0 where all of them are kept."""
    if tl.load(state + 2) + tl.load(state + 3) > keep:
        columns, inside, norms, shares = tile_of_columns(norm, column, tl.program_id(1), K, FACTORS, TILE)
        threshold = tl.load(state + 1).to(tl.int32)
        for step in tl.static_range(ROWS):
            line = tl.minimum(tl.program_id(0) * ROWS + step, outputs - 1)
            found = keys_of(values, line, columns, inside, norms, row, shares, K, FACTORS)
            place = counts + line * tl.num_programs(1) + tl.program_id(1)
            tl.store(place, tl.sum((found == threshold).to(tl.int32), 0))


@triton.jit
def mask_kernel(
    values,
    norm,
    row,
    column,
    state,
    starts,
    kept,
    outputs,
    keep,
    K: tl.constexpr,
    FACTORS: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
):
    """Keeps the keys above the threshold and the first of those that equal it. starts: (out, tiles), ties before."""
    columns, inside, norms, shares = tile_of_columns(norm, column, tl.program_id(1), K, FACTORS, TILE)
    threshold = tl.load(state + 1).to(tl.int32)
    missing = keep - tl.load(state + 2)
    for step in tl.static_range(ROWS):
        line = tl.minimum(tl.program_id(0) * ROWS + step, outputs - 1)
        found = keys_of(values, line, columns, inside, norms, row, shares, K, FACTORS)
        tied = found == threshold
        allowed = (missing - tl.load(starts + line * tl.num_programs(1) + tl.program_id(1))).to(tl.int32)
        chosen = (found > threshold) | (tied & (tl.cumsum(tied.to(tl.int32), 0) <= allowed))
        tl.store(kept + line.to(tl.int64) * K + columns, chosen.to(tl.uint8), mask=inside)
