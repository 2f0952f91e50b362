"""CRePE: a weight's importance relative to its row, its column and its 2-D neighbourhood (Park 2026)."""

from __future__ import annotations

from torch import Tensor

from crepe.criteria.base import CRITERIA, Criterion
from crepe.criteria.coefficients import Coefficients
from crepe.criteria.neighbourhood import neighbourhood_term
from crepe.criteria.ria import reciprocal


def crepe_score(weight: Tensor, norm: Tensor, coefficients: Coefficients) -> Tensor:
    """S_ij = (n (r |W_ij| / sum_j |W_ij| + c |W_ij| / sum_i |W_ij|) + g N_ij) * ||X_j||_2 ^ a.

    r, c, g and a are the row, column, neighbourhood and activation coefficients; N is the neighbourhood term, of
    mean about 1. n = 2 out in / (out + in) is the harmonic mean of the two sizes: it brings the first two terms to
    a mean of about 1 as well, and being common to both it keeps RIA as the exact corner r = c = 1, g = 0.

    weight: (out, in); norm: (in,). Returns (out, in).
    """
    size = weight.abs()
    out, inputs = size.shape
    common = 2 * out * inputs / (out + inputs)
    row = reciprocal(size.sum(1, keepdim=True)).mul_(coefficients.row * common)
    column = reciprocal(size.sum(0, keepdim=True)).mul_(coefficients.column * common)
    importance = (row + column).mul_(size)
    if coefficients.neighbourhood:
        term = neighbourhood_term(size, coefficients.form, coefficients.kernel)
        importance.add_(term, alpha=coefficients.neighbourhood)
    return importance.mul_(norm.pow(coefficients.activation))


CRITERIA.add(
    "crepe",
    Criterion(
        lambda weight, statistics, coefficients: crepe_score(weight, statistics["norm"], coefficients),
        needs=frozenset({"norm"}),
    ),
)
