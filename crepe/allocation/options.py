"""Division where a pattern offers each tensor a few sparsities only, such as `dense+2:4`."""

from __future__ import annotations

from collections.abc import Mapping

from crepe.allocation.base import Budget
from crepe.allocation.bounds import require_reachable
from crepe.allocation.curves import Curve, cheapest_first
from crepe.errors import CrepeError

_NOISE = 1e-9


def options_of(name: str, budget: Budget) -> tuple[float, ...]:
    """The sparsities that the pattern and the user's bounds allow tensor `name`, rising.

    Raises:
        CrepeError: none is allowed.
    """
    shape = budget.shapes[name]
    fitting = budget.pattern.sparsities_of(shape) or ()
    low, high = budget.bounds.get(name, (0.0, 1.0))
    allowed = tuple(s for s in fitting if low - _NOISE <= s <= high + _NOISE)
    if not allowed:
        reason = budget.pattern.obstacle(shape) or f"no option lies within {low:g}:{high:g}"
        raise CrepeError(f"pattern {budget.pattern} cannot be used for {name!r} of shape {shape}: {reason}")
    return allowed


def least_loss_options(curves: Mapping[str, Curve], budget: Budget) -> dict[str, float]:
    """One of the sparsities of its curve for each tensor, with a small sum of losses.

    Guarantee: all tensors together get at least `budget.zeros` zeros, and fewer than one tensor's weights more. The
    choice is the best there is where segments of the hulls meet the budget exactly; else the gap that is smaller than
    the next segment is closed by the cheapest single change, and what the excess allows is taken back.

    Raises:
        CrepeError: the budget lies outside what the options allow.
    """
    sizes = budget.sizes
    ends = ({name: round(sizes[name] * curve[end][0]) for name, curve in curves.items()} for end in (0, -1))
    require_reachable(budget, *ends)
    chosen = {name: curve[0][0] for name, curve in curves.items()}
    missing = budget.zeros - sum(round(sizes[name] * sparsity) for name, sparsity in chosen.items())
    for step in cheapest_first(curves):
        gain = round(sizes[step.name] * (step.end - step.start))
        if gain >= missing:
            break
        chosen[step.name] = step.end
        missing -= gain
    if missing > 0:
        missing -= _close_gap(chosen, curves, sizes, missing)
    while change := _take_back(chosen, curves, sizes, -missing):
        missing += change
    return chosen


# What moving one tensor to another option brings: loss, zeros, name, sparsity.
_Change = tuple[float, int, str, float]


def _changes(chosen: Mapping[str, float], curves: Mapping[str, Curve], sizes: Mapping[str, int]) -> list[_Change]:
    found = []
    for name, curve in curves.items():
        now = dict(curve)[chosen[name]]
        for sparsity, loss in curve:
            gain = round(sizes[name] * (sparsity - chosen[name]))
            found.append((sizes[name] * (loss - now), gain, name, sparsity))
    return found


def _close_gap(chosen: dict[str, float], curves: Mapping[str, Curve], sizes: Mapping[str, int], missing: int) -> int:
    """Makes the cheapest single change that brings at least `missing` zeros; returns how many it brings."""
    enough = [change for change in _changes(chosen, curves, sizes) if change[1] >= missing]
    _, gain, name, sparsity = min(enough, key=lambda change: change[:2])
    chosen[name] = sparsity
    return gain


def _take_back(chosen: dict[str, float], curves: Mapping[str, Curve], sizes: Mapping[str, int], excess: int) -> int:
    """Makes the single change that saves most loss and removes at most `excess` zeros; returns how many, 0 if none."""
    fitting = [c for c in _changes(chosen, curves, sizes) if c[0] <= 0 and 0 < -c[1] <= excess]
    if not fitting:
        return 0
    _, gain, name, sparsity = min(fitting, key=lambda change: change[:2])
    chosen[name] = sparsity
    return -gain
