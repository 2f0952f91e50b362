"""Error: the division that loses least output energy, measured for each tensor over a grid of sparsities."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from crepe.allocation.base import ALLOCATIONS, Allocation, Budget, Summary
from crepe.allocation.bounds import limits
from crepe.allocation.curves import Curve, least_loss
from crepe.allocation.exact import exact_sparsities
from crepe.allocation.options import least_loss_options, options_of
from crepe.masks.matrix import Matrix

# Our own choices: how far from the target a tensor may go, and at how many sparsities its error is measured.
SPREAD = 0.15
POINTS = 7


def error_curves(matrices: Mapping[str, Matrix], budget: Budget) -> dict[str, Summary]:
    """tr((W - W_s) G (W - W_s)^T) / tr(W G W^T) at each sparsity s of the grid, times the share of tokens.

    Masks are those of the pattern for the criterion's score. The share of tokens is 1 but for the experts of a
    mixture: what an expert loses counts as often as it is called.
    """
    tokens = {name: float(m.statistics["tokens"]) if "tokens" in m.statistics else 1.0 for name, m in matrices.items()}
    most = max(1.0, *tokens.values())
    found = {}
    for name, sparsities in grids(matrices, budget).items():
        share = max(1.0, tokens[name]) / most
        found[name] = tuple(share * error for error in _errors(matrices[name], sparsities, budget))
    return found


def error(summaries: Mapping[str, Summary], budget: Budget) -> dict[str, float]:
    """The sparsities with the least sum of measured errors over all tensors that meet the budget.

    Between the points of the grid the error is read from the convex hull of the curve. Unless the user's bounds say
    otherwise, no tensor goes further than 0.15 from the target, or above three quarters of the way from it to 1.
    Where the pattern offers a few sparsities, the choice among them is that of `least_loss_options`.
    """
    sizes = budget.sizes
    curves: dict[str, Curve] = {
        name: [(s, e / sizes[name]) for s, e in zip(sparsities, summaries[name], strict=True)]
        for name, sparsities in grids(sizes, budget).items()
    }
    if budget.pattern.sparsities is not None:
        return least_loss_options(curves, budget)
    return exact_sparsities(least_loss(curves, budget), budget, limits(budget, SPREAD))


def grids(names: Iterable[str], budget: Budget) -> dict[str, tuple[float, ...]]:
    """The sparsities at which the errors of the tensors are measured, rising."""
    if budget.pattern.sparsities is not None:
        return {name: options_of(name, budget) for name in names}
    bounds = limits(budget, SPREAD)
    return {name: _evenly(*bounds[name]) for name in names}


def _evenly(low: float, high: float) -> tuple[float, ...]:
    inner = (low + (high - low) * i / (POINTS - 1) for i in range(1, POINTS - 1))
    return (low, *inner, high) if high > low else (low,)


def _errors(matrix: Matrix, sparsities: tuple[float, ...], budget: Budget) -> list[float]:
    whole = _energy(matrix.dense, matrix.gram)
    masks = (budget.pattern.select(matrix.score, sparsity, matrix.compare) for sparsity in sparsities)
    lost = (_energy(matrix.dense.masked_fill(kept, 0.0), matrix.gram) for kept in masks)
    return [max(0.0, energy / whole) if whole > 0 else 0.0 for energy in lost]


def _energy(weight: Tensor, gram: Tensor) -> float:
    """tr(W G W^T) of weight (out, in) and gram (in, in)."""
    return float(((weight @ gram) * weight).sum(dtype=torch.float64))


ALLOCATIONS.add("error", Allocation(error, error_curves, needs=frozenset({"gram"})))
