"""The best of a whole matrix, exactly: count against a bracket, gather what is inside, sort that, write the mask.

Three reads of the weight, four where ties have to be broken. No atomics, so that the same input gives the same bytes;
nothing waits for the device, so that a CUDA graph can record it. The bracket comes from a sample; where it misses the
threshold, a slow kernel that otherwise returns at once finds it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from crepe.kernels.triton.launch import cdiv, factors_of, tile_of
from crepe.kernels.triton.overall_kernels import count_kernel, gather_kernel, mask_kernel, search_kernel, ties_kernel

ROWS = 4
WARPS = 4
TILE = 1024
SAMPLE = 1 << 18
# Half width of the bracket in standard deviations of a sampled rank: a miss is rare and costs time only.
DEVIATIONS = 4.0
LOWEST, HIGHEST = 1 - (1 << 31), (1 << 31) - 1
# 2^32 divided by the golden ratio: its multiples visit a matrix evenly, whatever its width.
_STEP = 2654435761


@dataclass(frozen=True)
class Scored:
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
        return cdiv(self.values.shape[0], ROWS), cdiv(self.values.shape[1], self.tile)

    def launch(self, kernel: Any, *arguments: Tensor | int, grid: tuple[int, ...] = (), **constants: int) -> None:
        kernel[grid or self.grid](
            self.values,
            self.norm,
            self.row,
            self.column,
            *arguments,
            **constants,
            K=self.values.shape[1],
            FACTORS=factors_of(self.norm, self.row),
            TILE=self.tile,
            num_warps=WARPS,
        )

    def per_tile(self, *leading: int) -> Tensor:
        """Zeros for every tile, (*leading, out, tiles) int32."""
        return self.values.new_zeros(*leading, self.values.shape[0], self.grid[1], dtype=torch.int32)

    def sample(self) -> Tensor:
        """Keys of an even sample, falling."""
        inputs, total = self.values.shape[1], self.values.numel()
        count = min(SAMPLE, total)
        places = torch.arange(count, device=self.values.device) * (_STEP if count < total else 1) % total
        lines, columns = places // inputs, places % inputs
        values = self.values.reshape(-1)[places]
        if self.norm is None:
            return keys(values.float()).sort(descending=True).values
        size = values.float().abs()
        if self.row is not None and self.column is not None:
            size = size * (self.row[lines] + self.column[columns])
        return keys(size * self.norm[columns]).sort(descending=True).values


def select_overall(values: Tensor, keep: int, norm: Tensor | None, row: Tensor | None, column: Tensor | None) -> Tensor:
    """See `crepe.kernels.reference.selection.select_overall`."""
    if not 0 < keep < values.numel():
        return torch.full_like(values, keep > 0, dtype=torch.bool)
    scored = Scored(values, norm, row, column)
    state = _threshold(scored, keep)
    ties = scored.per_tile()
    scored.launch(ties_kernel, state, ties, len(values), keep, ROWS=ROWS)
    kept = torch.empty_like(values, dtype=torch.bool)
    scored.launch(mask_kernel, state, _starts(ties), kept.view(torch.uint8), len(values), keep, ROWS=ROWS)
    return kept


def _threshold(scored: Scored, keep: int) -> Tensor:
    """(4,) int64: 1 where the bracket held, the `keep`-th largest key, keys above it, keys that equal it."""
    outputs, total = len(scored.values), scored.values.numel()
    sample = scored.sample()
    first, last = bracket(len(sample), keep / total)
    # Twice what a bracket of this width holds on average.
    capacity = min(total, 1024 + 2 * total * (last - first) // len(sample))
    bounds = torch.stack([_bound(sample, last, LOWEST), _bound(sample, first, HIGHEST)])
    counts = scored.per_tile(2)
    scored.launch(count_kernel, bounds, counts, outputs, ROWS=ROWS)
    larger, equal_or_larger = counts >> 16, counts & 65535
    # An empty bracket has no inside, and the difference would count the ties at its one bound.
    between = (larger[1] - equal_or_larger[0]).clamp_min(0)
    gathered = torch.full((capacity,), LOWEST - 1, dtype=torch.int32, device=bounds.device)
    scored.launch(gather_kernel, bounds, _starts(between), gathered, outputs, capacity, ROWS=ROWS)
    sums = torch.stack([larger, equal_or_larger], 1).flatten(2).sum(2).flatten()
    state = _decide(bounds.long(), sums, gathered.sort(descending=True).values, keep)
    scored.launch(search_kernel, state, keep, grid=(1,), OUTPUTS=outputs)
    return state


def _decide(bounds: Tensor, sums: Tensor, ordered: Tensor, keep: int) -> Tensor:
    """The state from the counts. sums: (4,) keys above the upper bound, not below it, above the lower one, not below
    it; ordered: the keys between the bounds, falling."""
    above_high, from_high, above_low, from_low = sums.unbind()
    capacity = len(ordered)
    # Not by indexing, which would fetch the index from the device.
    chosen = ordered.gather(0, (keep - from_high - 1).clamp(0, capacity - 1)[None])[0]
    inside = torch.stack([chosen.long(), from_high + (ordered > chosen).sum(), (ordered == chosen).sum()])
    at_high = torch.stack([bounds[1], above_high, from_high - above_high])
    at_low = torch.stack([bounds[0], above_low, from_low - above_low])
    found = torch.where(keep <= from_high, at_high, torch.where(keep <= above_low, inside, at_low))
    fits = (keep <= from_high) | (keep > above_low) | (above_low - from_high <= capacity)
    held = (above_high < keep) & (keep <= from_low) & fits
    return torch.cat([held.long()[None], found])


def bracket(count: int, share: float) -> tuple[int, int]:
    """Ranks in a falling sample of `count` between which the threshold should lie that keeps `share` of all; -1 and
    `count` where it may lie beyond the sample."""
    margin = int(DEVIATIONS * (count * share * (1 - share)) ** 0.5) + 1
    middle = int(count * share)
    return max(-1, middle - margin), min(count, middle + margin)


def _bound(sample: Tensor, rank: int, beyond: int) -> Tensor:
    return sample[rank] if 0 <= rank < len(sample) else sample.new_full((), beyond)


def keys(scores: Tensor) -> Tensor:
    """What the kernels compare, see `scores.key`."""
    bits = (scores + 0.0).view(torch.int32)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


def _starts(counts: Tensor) -> Tensor:
    """How many come before each tile, int64."""
    flat = counts.flatten().long()
    return flat.cumsum(0) - flat
