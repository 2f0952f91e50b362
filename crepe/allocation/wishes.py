"""From the sparsity that a rule wishes for each tensor to one that the pattern and the budget allow."""

from __future__ import annotations

from collections.abc import Mapping

from crepe.allocation.base import Budget, Summary
from crepe.allocation.bounds import limits, require_reachable
from crepe.allocation.exact import exact_sparsities, shifted
from crepe.allocation.options import least_loss_options, options_of


def grant(wishes: Mapping[str, float], budget: Budget) -> dict[str, float]:
    """Sparsities near the wishes that meet the budget.

    Where the pattern leaves the sparsity free: see `exact_sparsities`, within `limits(budget)`. Where it
    offers a few options: those with the least sum of squared distances to the shifted wishes, by
    `least_loss_options` with its guarantee.
    """
    if budget.pattern.sparsities is None:
        return exact_sparsities(wishes, budget, limits(budget))
    return _snap(wishes, budget)


def _snap(wishes: Mapping[str, float], budget: Budget) -> dict[str, float]:
    sizes = budget.sizes
    options = {name: options_of(name, budget) for name in sizes}
    low, high = ({name: round(sizes[name] * found[end]) for name, found in options.items()} for end in (0, -1))
    require_reachable(budget, low, high)
    bounds = {name: (found[0], found[-1]) for name, found in options.items()}
    wished = shifted(wishes, sizes, bounds, budget.zeros)
    curves = {name: [(s, (s - wished[name]) ** 2) for s in found] for name, found in options.items()}
    return least_loss_options(curves, budget)


def only_values(summaries: Mapping[str, Summary], budget: Budget) -> dict[str, float]:
    """The one number of each summary; tensors that have none get the mean of the others."""
    known = {name: summaries[name][0] for name in budget.shapes if summaries.get(name)}
    mean = sum(known.values()) / len(known) if known else 0.0
    return {name: known.get(name, mean) for name in budget.shapes}


def to_unit_range(values: Mapping[str, float]) -> dict[str, float]:
    """(value - min) / (max - min); 0.5 for all where they are equal."""
    low, high = min(values.values()), max(values.values())
    return {name: (value - low) / (high - low) if high > low else 0.5 for name, value in values.items()}
