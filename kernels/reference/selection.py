"""Scores that separate into factors, and the exact selections by them: what the selection kernels are held against.

A score is given by `values` (out, in) and up to three factors, all float32:

    no factor             S_ij = values_ij, which are then scores of any kind
    norm                  S_ij = |values_ij| * norm_j
    norm, row and column  S_ij = |values_ij| * (row_i + column_j) * norm_j

The second form is magnitude and Wanda, the third RIA and CRePE without its neighbourhood term. The products are taken
from left to right and rounded to float32 after each step, so that a kernel can repeat them bit by bit.
"""

from __future__ import annotations

from torch import Tensor

from crepe.kernels.reference import sp24
from crepe.masks import NofM, select_largest


def score_of(values: Tensor, norm: Tensor | None, row: Tensor | None, column: Tensor | None) -> Tensor:
    """values: (out, in); norm, column: (in,); row: (out,) -> scores (out, in) float32."""
    if norm is None:
        return values.float()
    size = values.float().abs()
    if row is not None and column is not None:
        size = size * (row[:, None] + column)
    return size * norm


def select_n_of_m(
    values: Tensor, n: int, m: int, norm: Tensor | None, row: Tensor | None, column: Tensor | None
) -> Tensor:
    """The mask (out, in) bool that keeps the `n` best of every `m` neighbours.

    Raises:
        CrepeError: `in` is no multiple of `m`.
    """
    return NofM(n, m).select(score_of(values, norm, row, column), 0.0)


def select_by_row(values: Tensor, keep: int, norm: Tensor | None, row: Tensor | None, column: Tensor | None) -> Tensor:
    """The mask (out, in) bool that keeps the `keep` best of every row."""
    return select_largest(score_of(values, norm, row, column), keep)


def select_overall(values: Tensor, keep: int, norm: Tensor | None, row: Tensor | None, column: Tensor | None) -> Tensor:
    """The mask (out, in) bool that keeps the `keep` best of the whole matrix; ties go to the lower row, then column."""
    return select_largest(score_of(values, norm, row, column).reshape(1, -1), keep).reshape(values.shape)


def prune_pack(values: Tensor, norm: Tensor | None, row: Tensor | None, column: Tensor | None) -> tuple[Tensor, Tensor]:
    """The weight with the two best of every four, packed: values (out, in / 2), meta (out, in / 32), see `sp24`."""
    return sp24.pack(values, select_n_of_m(values, 2, 4, norm, row, column))
