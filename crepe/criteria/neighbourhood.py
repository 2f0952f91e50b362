"""The k x k neighbourhood of a weight in its matrix: the third term of CRePE (Park 2026).

The paper's exact formula is not public in full; these are the three forms that the abstract allows, each of mean
about 1 so that one coefficient means the same for a matrix of any size.
"""

from __future__ import annotations

from torch import Tensor

from crepe.criteria.ria import reciprocal
from crepe.criteria.sums import box_mean


def neighbourhood_term(size: Tensor, form: str, kernel: int) -> Tensor:
    """The term for |W| = `size` (out, in)."""
    return term_from_box(size, box_mean(size, kernel), size.mean(), form)


def term_from_box(size: Tensor, box: Tensor, mean: Tensor, form: str) -> Tensor:
    """The term from `box`, the box mean of `size` = |W| (..., out, in), and `mean`, the mean of the whole matrix.

    relative: |W| / boxmean (importance among the neighbours)
    context:  boxmean / mean (a strong neighbourhood raises its members)
    product:  |W| * boxmean / mean^2
    """
    if form == "relative":
        return reciprocal(box).mul_(size)
    scale = reciprocal(mean)
    if form == "context":
        return box * scale
    return (box * (scale * scale)).mul_(size)
