"""The best of a whole matrix, exactly: count against a bracket, gather what is inside, sort that, write the mask.

Three reads of the weight, four where ties have to be broken, and no atomics, so that the same input gives the same bytes. The bracket comes from a sample;
where it misses the threshold, the side on which that lies is gathered instead: slower, and as exact.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from crepe.kernels.triton.launch import factors_of, tile_of
from crepe.kernels.triton.scores import factor, key, score

ROWS = 4
WARPS = 4
TILE = 1024
SAMPLE = 1 << 16
# Half width of the bracket in standard deviations of a sampled rank: a miss is rare and costs time only.
DEVIATIONS = 4.0
LOWEST, HIGHEST = 1 - (1 << 31), (1 << 31) - 1
# Below the key of every score.
OUTSIDE = tl.constexpr(-(1 << 31))
# 2^32 divided by the golden ratio: its multiples visit a matrix evenly, whatever its width.
_STEP = 2654435761


@triton.jit
def keys_of(values, line, columns, here, norms, own, shares, K: tl.constexpr, FACTORS: tl.constexpr):
    """The keys of a tile, OUTSIDE behind the end of the matrix."""
    value = tl.load(values + line.to(tl.int64) * K + columns, mask=here, other=0.0).to(tl.float32)
    return tl.where(here, key(score(value, norms, own, shares, FACTORS), FACTORS), OUTSIDE)


@triton.jit(do_not_specialize=["low", "high"])
def count_kernel(
    values,
    norm,
    row,
    column,
    counts,
    outputs,
    low,
    high,
    K: tl.constexpr,
    FACTORS: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
):
    """counts: (2, out, tiles) int32, the keys above `high` and those in low..high, both included."""
    columns = tl.program_id(1) * TILE + tl.arange(0, TILE)
    inside = columns < K
    norms = factor(norm, columns, inside, FACTORS > 0)
    shares = factor(column, columns, inside, FACTORS > 1)
    tiles = tl.num_programs(1)
    for step in tl.static_range(ROWS):
        line = tl.program_id(0) * ROWS + step
        here = inside & (line < outputs)
        own = tl.load(row + line, mask=line < outputs, other=0.0) if FACTORS > 1 else 0.0
        found = keys_of(values, line, columns, here, norms, own, shares, K, FACTORS)
        # Both in one sum: a tile is shorter than 2^16.
        both = tl.sum(tl.where(found > high, 1 << 16, tl.where(found >= low, 1, 0)), 0)
        place = counts + line * tiles + tl.program_id(1)
        tl.store(place, both >> 16, mask=line < outputs)
        tl.store(place + outputs * tiles, both & 65535, mask=line < outputs)


@triton.jit(do_not_specialize=["low", "high"])
def gather_kernel(
    values,
    norm,
    row,
    column,
    starts,
    found_keys,
    outputs,
    low,
    high,
    K: tl.constexpr,
    FACTORS: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
):
    """found_keys: the keys in low..high; those of a tile stand from `starts` (out, tiles) int64 on."""
    columns = tl.program_id(1) * TILE + tl.arange(0, TILE)
    inside = columns < K
    norms = factor(norm, columns, inside, FACTORS > 0)
    shares = factor(column, columns, inside, FACTORS > 1)
    for step in tl.static_range(ROWS):
        line = tl.program_id(0) * ROWS + step
        here = inside & (line < outputs)
        own = tl.load(row + line, mask=line < outputs, other=0.0) if FACTORS > 1 else 0.0
        found = keys_of(values, line, columns, here, norms, own, shares, K, FACTORS)
        between = (found >= low) & (found <= high)
        start = tl.load(starts + line * tl.num_programs(1) + tl.program_id(1), mask=line < outputs, other=0)
        tl.store(found_keys + start + tl.cumsum(between.to(tl.int32), 0) - 1, found, mask=between)


@triton.jit(do_not_specialize=["threshold", "missing"])
def mask_kernel(
    values,
    norm,
    row,
    column,
    starts,
    kept,
    outputs,
    threshold,
    missing,
    K: tl.constexpr,
    FACTORS: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
):
    """Keeps the keys above `threshold` and the first `missing` of those that equal it. starts: ties before a tile."""
    columns = tl.program_id(1) * TILE + tl.arange(0, TILE)
    inside = columns < K
    norms = factor(norm, columns, inside, FACTORS > 0)
    shares = factor(column, columns, inside, FACTORS > 1)
    for step in tl.static_range(ROWS):
        line = tl.program_id(0) * ROWS + step
        here = inside & (line < outputs)
        own = tl.load(row + line, mask=line < outputs, other=0.0) if FACTORS > 1 else 0.0
        found = keys_of(values, line, columns, here, norms, own, shares, K, FACTORS)
        tied = found == threshold
        before = tl.load(starts + line * tl.num_programs(1) + tl.program_id(1), mask=line < outputs, other=0)
        chosen = (found > threshold) | (tied & (before + tl.cumsum(tied.to(tl.int32), 0) <= missing))
        tl.store(kept + line.to(tl.int64) * K + columns, chosen.to(tl.uint8), mask=here)


@dataclass(frozen=True)
class Matrix:
    """A matrix of scores that is nowhere stored: values with their factors, and how kernels walk over them."""

    values: Tensor
    norm: Tensor | None
    row: Tensor | None
    column: Tensor | None

    @property
    def tile(self) -> int:
        return tile_of(self.values.shape[1], TILE)

    @property
    def grid(self) -> tuple[int, int]:
        return triton.cdiv(self.values.shape[0], ROWS), triton.cdiv(self.values.shape[1], self.tile)

    def launch(self, kernel: triton.JITFunction, tensors: tuple[Tensor, ...], numbers: tuple[int, int]) -> None:
        outputs, inputs = self.values.shape
        kernel[self.grid](
            self.values,
            self.norm,
            self.row,
            self.column,
            *tensors,
            outputs,
            *numbers,
            K=inputs,
            FACTORS=factors_of(self.norm, self.row),
            ROWS=ROWS,
            TILE=self.tile,
            num_warps=WARPS,
        )

    def counts(self, low: int, high: int) -> Tensor:
        """For every tile in the order of its weights: keys above `high`, keys in low..high; (2, tiles) int64."""
        found = self.values.new_empty(2, self.values.shape[0], self.grid[1], dtype=torch.int32)
        self.launch(count_kernel, (found,), (low, high))
        return found.flatten(1).long()

    def no_counts(self) -> Tensor:
        """In place of the ties of every tile where all of them are kept."""
        return self.values.new_zeros(self.values.shape[0] * self.grid[1], dtype=torch.int64)

    def sample(self) -> Tensor:
        """Keys of an even sample, falling."""
        outputs, inputs = self.values.shape
        total = outputs * inputs
        count = min(SAMPLE, total)
        places = torch.arange(count, device=self.values.device) * (_STEP if count < total else 1) % total
        lines, columns = places // inputs, places % inputs
        values = self.values.reshape(-1)[places].float()
        if self.norm is not None:
            values = values.abs()
            if self.row is not None and self.column is not None:
                values = values * (self.row[lines] + self.column[columns])
            values = values * self.norm[columns]
        bits = (values + 0.0).view(torch.int32)
        return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).sort(descending=True).values


def select_overall(values: Tensor, keep: int, norm: Tensor | None, row: Tensor | None, column: Tensor | None) -> Tensor:
    """See `crepe.kernels.reference.selection.select_overall`. Waits for the device: counts decide what follows."""
    if not 0 < keep < values.numel():
        return torch.full_like(values, keep > 0, dtype=torch.bool)
    matrix = Matrix(values, norm, row, column)
    threshold, missing, ties = _threshold(matrix, keep)
    kept = torch.empty_like(values, dtype=torch.bool)
    tied = matrix.counts(threshold, threshold)[1] if missing < ties else matrix.no_counts()
    starts = _starts(tied)
    matrix.launch(mask_kernel, (starts, kept.view(torch.uint8)), (threshold, missing))
    return kept


def _threshold(matrix: Matrix, keep: int) -> tuple[int, int, int]:
    """The `keep`-th largest key, how many of the keys that equal it are kept, and how many there are."""
    low, high = bracket(matrix.sample(), keep / matrix.values.numel())
    counts = matrix.counts(low, high)
    above, between = counts.sum(1).tolist()
    while not above < keep <= above + between:
        low, high = (high + 1, HIGHEST) if keep <= above else (LOWEST, low - 1)
        counts = matrix.counts(low, high)
        above, between = counts.sum(1).tolist()
    found = matrix.values.new_empty(between, dtype=torch.int32)
    matrix.launch(gather_kernel, (_starts(counts[1]), found), (low, high))
    ordered = found.sort(descending=True).values
    threshold = int(ordered[keep - above - 1])
    inside, ties = torch.stack([(ordered > threshold).sum(), (ordered == threshold).sum()]).tolist()
    return threshold, keep - above - inside, ties


def bracket(sample: Tensor, share: float) -> tuple[int, int]:
    """Keys between which the threshold should lie that keeps `share` of all. sample: keys, falling."""
    count = len(sample)
    margin = int(DEVIATIONS * (count * share * (1 - share)) ** 0.5) + 1
    first, last = int(count * share) - margin, int(count * share) + margin
    return (LOWEST if last >= count else int(sample[last])), (HIGHEST if first < 0 else int(sample[first]))


def _starts(counts: Tensor) -> Tensor:
    """How many come before each tile, int64."""
    return counts.cumsum(0) - counts
