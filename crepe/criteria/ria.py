"""RIA: relative importance and activations (Zhang et al., ICLR 2024, eq. 4 and 5), compared over the matrix."""

from __future__ import annotations

from torch import Tensor

from crepe.criteria.base import CRITERIA, Criterion, Factors
from crepe.criteria.sums import absolute_sums

EXPONENT = 0.5


def ria_score(weight: Tensor, norm: Tensor, exponent: float = EXPONENT) -> Tensor:
    """S_ij = (|W_ij| / sum_j |W_ij| + |W_ij| / sum_i |W_ij|) * ||X_j||_2 ^ exponent.

    weight: (out, in); norm: (in,). A row or column of zeros scores zero.
    """
    row, column = shares(weight)
    return weight.abs().mul_(row + column).mul_(norm.pow(exponent))


def ria_factors(weight: Tensor, norm: Tensor, exponent: float = EXPONENT) -> Factors:
    """What `ria_score` separates into."""
    row, column = shares(weight)
    return Factors(norm.pow(exponent), row.flatten(), column.flatten())


def shares(weight: Tensor) -> tuple[Tensor, Tensor]:
    """1 / sum_j |W_ij| (out, 1) and 1 / sum_i |W_ij| (1, in), float32. weight: (out, in)."""
    row, column = absolute_sums(weight)
    return reciprocal(row)[:, None], reciprocal(column)[None]


def reciprocal(total: Tensor) -> Tensor:
    """1 / total, and 0 where the total is 0, so that an all-zero row or column scores 0 instead of NaN."""
    return total.reciprocal().nan_to_num_(posinf=0.0)


CRITERIA.add(
    "ria",
    Criterion(
        lambda weight, statistics, coefficients: ria_score(weight, statistics["norm"]),
        needs=frozenset({"norm"}),
        factors=lambda weight, statistics, coefficients: ria_factors(weight, statistics["norm"]),
    ),
)
