"""CRePE: a weight's importance relative to its row, its column and its 2-D neighbourhood (Park 2026)."""

from __future__ import annotations

from torch import Tensor

from crepe.criteria.base import CRITERIA, Criterion, Factors
from crepe.criteria.coefficients import Coefficients
from crepe.criteria.neighbourhood import neighbourhood_term
from crepe.criteria.ria import shares


def crepe_score(weight: Tensor, norm: Tensor, coefficients: Coefficients) -> Tensor:
    """S_ij = (n (r |W_ij| / sum_j |W_ij| + c |W_ij| / sum_i |W_ij|) + g N_ij) * ||X_j||_2 ^ a.

    r, c, g and a are the row, column, neighbourhood and activation coefficients; N is the neighbourhood term, of
    mean about 1. n = 2 out in / (out + in) is the harmonic mean of the two sizes: it brings the first two terms to
    a mean of about 1 as well, and being common to both it keeps RIA as the exact corner r = c = 1, g = 0.

    weight: (out, in); norm: (in,). Returns (out, in).
    """
    row, column = weighted_shares(weight, coefficients)
    size = weight.abs()
    importance = (row + column).mul_(size)
    if coefficients.neighbourhood:
        term = neighbourhood_term(size, coefficients.form, coefficients.kernel)
        importance.add_(term, alpha=coefficients.neighbourhood)
    return importance.mul_(norm.pow(coefficients.activation))


def crepe_factors(weight: Tensor, norm: Tensor, coefficients: Coefficients) -> Factors | None:
    """What `crepe_score` separates into, None with a neighbourhood term."""
    if coefficients.neighbourhood:
        return None
    row, column = weighted_shares(weight, coefficients)
    return Factors(norm.pow(coefficients.activation), row.flatten(), column.flatten())


def weighted_shares(weight: Tensor, coefficients: Coefficients) -> tuple[Tensor, Tensor]:
    """n r / sum_j |W_ij| (out, 1) and n c / sum_i |W_ij| (1, in), float32. weight: (out, in)."""
    out, inputs = weight.shape
    common = 2 * out * inputs / (out + inputs)
    row, column = shares(weight)
    return row.mul_(coefficients.row * common), column.mul_(coefficients.column * common)


CRITERIA.add(
    "crepe",
    Criterion(
        lambda weight, statistics, coefficients: crepe_score(weight, statistics["norm"], coefficients),
        needs=frozenset({"norm"}),
        factors=lambda weight, statistics, coefficients: crepe_factors(weight, statistics["norm"], coefficients),
    ),
)
