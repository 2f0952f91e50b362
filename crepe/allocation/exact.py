"""Wished sparsities -> sparsities within bounds whose zeros add up to exactly the budget."""

from __future__ import annotations

import math
from collections.abc import Mapping

from crepe.allocation.base import Bounds, Budget
from crepe.allocation.bounds import require_reachable
from crepe.masks.select import kept_count

_HALVINGS = 64
# Products such as 0.7 * 10 = 7.000000000000001 must not cost a weight.
_NOISE = 1e-6


def exact_sparsities(wishes: Mapping[str, float], budget: Budget, bounds: Mapping[str, Bounds]) -> dict[str, float]:
    """The wishes, shifted uniformly and clipped to the bounds, with exactly `budget.zeros` zeros in all.

    Through `kept_count(size, sparsity)` each returned sparsity gives an integer count of zeros, and these add up to
    the budget. Bounds hold; where no whole number of weights lies between them, they hold to within one weight.
    Where weights compete within each row, the mask rounds the sparsity in every row, and the sum is as near as that.

    Raises:
        CrepeError: the budget cannot be met within the bounds.
    """
    sizes = budget.sizes
    spans = {name: _whole_bounds(sizes[name], bounds[name]) for name in sizes}
    low, high = ({name: span[end] for name, span in spans.items()} for end in (0, 1))
    require_reachable(budget, low, high)
    shares = {name: (low[name] / sizes[name], high[name] / sizes[name]) for name in sizes}
    level = shifted(wishes, sizes, shares, budget.zeros)
    zeros = {name: min(max(_rounded(sizes[name], level[name]), low[name]), high[name]) for name in sizes}
    ideal = {name: sizes[name] * level[name] for name in sizes}
    zeros = _settle(zeros, ideal, spans, budget.zeros)
    return {name: _as_sparsity(zeros[name], sizes[name], level[name]) for name in sizes}


def shifted(
    wishes: Mapping[str, float], sizes: Mapping[str, int], bounds: Mapping[str, Bounds], zeros: int
) -> dict[str, float]:
    """clip(wish + shift, bounds) with the one shift for which sum size * sparsity = zeros, by bisection.

    Wishes that are right to within rounding stay as they are. `zeros` must lie within what the bounds allow.
    """

    def level(shift: float) -> dict[str, float]:
        return {name: min(max(wishes[name] + shift, bounds[name][0]), bounds[name][1]) for name in sizes}

    def excess(sparsities: Mapping[str, float]) -> float:
        return math.fsum(sizes[name] * sparsity for name, sparsity in sparsities.items()) - zeros

    unmoved = level(0.0)
    if abs(excess(unmoved)) <= 0.5:
        return unmoved
    low = min(bounds[name][0] - wishes[name] for name in sizes)
    high = max(bounds[name][1] - wishes[name] for name in sizes)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if excess(level(middle)) > 0 else (middle, high)
    return level((low + high) / 2)


def _whole_bounds(size: int, bounds: Bounds) -> tuple[int, int]:
    low, high = math.ceil(size * bounds[0] - _NOISE), math.floor(size * bounds[1] + _NOISE)
    # Where no whole number lies between the bounds, the two around them do.
    return min(low, high), max(low, high)


def _rounded(size: int, sparsity: float) -> int:
    return size - kept_count(size, sparsity)


def _settle(
    zeros: Mapping[str, int], ideal: Mapping[str, float], spans: Mapping[str, tuple[int, int]], total: int
) -> dict[str, int]:
    """One zero more or less where rounding was furthest off, until they add up to `total`."""
    settled = dict(zeros)
    while missing := total - sum(settled.values()):
        step, end = (1, 1) if missing > 0 else (-1, 0)
        movable = [name for name in settled if settled[name] != spans[name][end]]
        movable.sort(key=lambda name: step * (settled[name] - ideal[name]))
        for name in movable[: abs(missing)]:
            settled[name] += step
    return settled


def _as_sparsity(zeros: int, size: int, wish: float) -> float:
    # The wish where it means the same count: a comparison per row rounds it in every row, and 0.5 stays 0.5.
    return wish if _rounded(size, wish) == zeros else zeros / size
