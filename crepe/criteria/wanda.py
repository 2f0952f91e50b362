"""Wanda: magnitude times the norm of the input channel (Sun et al. 2024, eq. 1), compared per output row."""

from __future__ import annotations

from torch import Tensor

from crepe.criteria.base import CRITERIA, Criterion, Factors


def wanda_score(weight: Tensor, norm: Tensor) -> Tensor:
    """S_ij = |W_ij| * ||X_j||_2. weight: (out, in); norm: (in,)."""
    return weight.abs().mul_(norm)


CRITERIA.add(
    "wanda",
    Criterion(
        lambda weight, statistics, coefficients: wanda_score(weight, statistics["norm"]),
        needs=frozenset({"norm"}),
        compare="row",
        factors=lambda weight, statistics, coefficients: Factors(statistics["norm"]),
    ),
)
