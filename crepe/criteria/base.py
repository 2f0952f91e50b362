"""What a criterion is, and the one function through which the pipeline asks for scores."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from crepe.criteria.coefficients import Coefficients
from crepe.errors import CrepeError
from crepe.masks.pattern import Compare
from crepe.registry import Registry

ScoreFunction = Callable[[Tensor, Mapping[str, Tensor], Coefficients], Tensor]


@dataclass(frozen=True)
class Factors:
    """A score that separates: S_ij = |W_ij| * (row_i + column_j) * norm_j, without the sum where it has none.

    norm, column: (in,); row: (out,), all float32 and not negative. Multiplied in this order, with every step rounded to
    float32, they give the bytes of the score: a kernel can score and select in one read of the weight.
    """

    norm: Tensor
    row: Tensor | None = None
    column: Tensor | None = None


FactorFunction = Callable[[Tensor, Mapping[str, Tensor], Coefficients], Factors | None]


@dataclass(frozen=True)
class Criterion:
    """A score with what it needs.

    function: (weight (out, in) float32, statistics, coefficients) -> score (out, in) float32, higher = keep.
    needs: statistics that must be there; `norm` is (in,), the L2 norm of each input channel over all tokens.
    compare: the comparison group that the method's authors use for unstructured sparsity.
    factors: takes the same as `function`, the weight in its own dtype, and returns what that score separates into, None
    where it does not.
    """

    function: ScoreFunction
    needs: frozenset[str] = frozenset()
    compare: Compare = "tensor"
    factors: FactorFunction = lambda weight, statistics, coefficients: None


CRITERIA: Registry[Criterion] = Registry("method", "crepe.criteria")


def score(
    criterion: Criterion, weight: Tensor, statistics: Mapping[str, Tensor], coefficients: Coefficients, name: str = ""
) -> Tensor:
    """Scores in float32, whatever the dtype of `weight` (out, in).

    Raises:
        CrepeError: the weights or statistics hold NaN or infinite values; `name` says whose.
    """
    exact = weight.float()
    _check(criterion, exact, statistics, name)
    return criterion.function(exact, statistics, coefficients)


def factors(
    criterion: Criterion, weight: Tensor, statistics: Mapping[str, Tensor], coefficients: Coefficients, name: str = ""
) -> Factors | None:
    """What the score of `weight` (out, in) separates into, None where it does not; raises as `score` does."""
    _check(criterion, weight, statistics, name)
    return criterion.factors(weight, statistics, coefficients)


def _check(criterion: Criterion, weight: Tensor, statistics: Mapping[str, Tensor], name: str) -> None:
    """A look for broken values in the weight and in what the criterion needs."""
    _require_finite(weight, "weights", name)
    for key in sorted(criterion.needs):
        _require_finite(statistics[key], f"activation statistics ({key})", name)


def _require_finite(tensor: Tensor, what: str, name: str) -> None:
    # One sum instead of an elementwise test: it is finite unless an entry is not, or unless it overflows.
    if not bool(torch.isfinite(tensor.sum())) and not bool(torch.isfinite(tensor).all()):
        bad = int(tensor.numel() - torch.isfinite(tensor).sum())
        raise CrepeError(f"{what} of {name!r} hold {bad} NaN or infinite values: the model or its inputs are broken")
