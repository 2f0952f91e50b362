"""Loss curves over the sparsity of each tensor, and the division that loses least.

The sum of convex functions under one linear constraint is least where all slopes are equal (Lagrange), so segments of
the convex hulls are taken in order of their slope until the budget is reached.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from crepe.allocation.base import Budget

# (sparsity, loss per weight of the tensor), by rising sparsity.
Curve = Sequence[tuple[float, float]]

_GOLDEN = (5**0.5 - 1) / 2


@dataclass(frozen=True)
class Step:
    """One segment of the hull of a tensor's curve: from sparsity `start` to `end`, at `slope` of loss per zero."""

    name: str
    start: float
    end: float
    slope: float


def lower_hull(curve: Curve) -> list[tuple[float, float]]:
    """The points of the lower convex hull, those on its edges included."""
    hull: list[tuple[float, float]] = []
    for point in curve:
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) > _slope(hull[-1], point):
            hull.pop()
        hull.append(point)
    return hull


def cheapest_first(curves: Mapping[str, Curve]) -> list[Step]:
    """The segments of all hulls by rising slope.

    Among equal slopes the first segments of all tensors come before the second ones, and the tensors come in steps of
    the golden ratio, so that any number of them lies evenly over the depth of the model.
    """
    keyed = []
    for position, (name, curve) in enumerate(curves.items()):
        hull = lower_hull(curve)
        for number, (left, right) in enumerate(itertools.pairwise(hull)):
            slope = _slope(left, right)
            key = (slope, number, position * _GOLDEN % 1)
            keyed.append((key, Step(name, left[0], right[0], slope)))
    return [step for _, step in sorted(keyed, key=lambda pair: pair[0])]


def least_loss(curves: Mapping[str, Curve], budget: Budget) -> dict[str, float]:
    """Sparsities with the least sum of losses, each curve read as the straight lines of its hull.

    All weights together get `budget.zeros` zeros, fractions of a weight included, as far as the curves reach.
    """
    sizes = budget.sizes
    chosen = {name: curve[0][0] for name, curve in curves.items()}
    missing = budget.zeros - sum(sizes[name] * sparsity for name, sparsity in chosen.items())
    for step in cheapest_first(curves):
        if missing <= 0:
            break
        taken = min(missing / sizes[step.name], step.end - step.start)
        chosen[step.name] = step.end if taken == step.end - step.start else step.start + taken
        missing -= taken * sizes[step.name]
    return chosen


def _slope(left: tuple[float, float], right: tuple[float, float]) -> float:
    return (right[1] - left[1]) / (right[0] - left[0])
