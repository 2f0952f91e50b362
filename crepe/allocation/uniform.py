"""Uniform: every tensor gets the global sparsity."""

from __future__ import annotations

from collections.abc import Mapping

from crepe.allocation.base import ALLOCATIONS, Allocation, Budget, Summary
from crepe.allocation.wishes import grant


def uniform(summaries: Mapping[str, Summary], budget: Budget) -> dict[str, float]:
    """sparsity_t = sparsity for every tensor t; where the user's bounds cut some off, the others make up for them."""
    wishes = dict.fromkeys(budget.shapes, budget.sparsity)
    if budget.pattern.sparsities is None and not budget.bounds:
        return wishes
    return grant(wishes, budget)


ALLOCATIONS.add("uniform", Allocation(uniform))
