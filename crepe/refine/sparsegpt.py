"""SparseGPT: mask and weight update together, column by column (Frantar & Alistarh 2023, algorithm 1)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from crepe.masks import NofM, kept_count, select_largest
from crepe.masks.matrix import Matrix
from crepe.refine.base import REFINEMENTS, Refinement
from crepe.refine.gram import inverse_factor
from crepe.refine.rows import needs_single_weights

# Columns whose mask is chosen together and whose updates reach the rest of the matrix together; the authors' value.
BLOCK = 128
# The authors' damping.
DAMPING = 0.01

# Saliency (out, columns) -> which of them to keep.
Choice = Callable[[Tensor], Tensor]


def sparsegpt(matrix: Matrix) -> Matrix:
    """Choose a new mask and update the surviving weights: every removed weight is made up for by those behind it.

    In each block of columns the weights with the lowest w^2 / U_jj^2 go, U being the upper Cholesky factor of the
    inverse Gram matrix; column by column the error (w - q) / U_jj is taken off the columns behind. The criterion's
    score plays no part. Counts are exact: of the matrix, or of each row where rows are compared.
    """
    upper = inverse_factor(matrix.gram, DAMPING)
    weight = matrix.dense.clone()
    weight[:, matrix.gram.diagonal() == 0] = 0.0
    kept = torch.empty_like(matrix.kept)
    size = _block_size(matrix)
    for start in range(0, weight.shape[1], size):
        columns = slice(start, min(start + size, weight.shape[1]))
        choose = _choice(matrix, kept[:, :start], columns)
        block, mask, errors = _prune_block(weight[:, columns], upper[columns, columns], choose, _group(matrix))
        weight[:, columns], kept[:, columns] = block, mask
        weight[:, columns.stop :].addmm_(errors, upper[columns, columns.stop :], alpha=-1)
    return replace(matrix, weight=weight * kept, kept=kept)


def _group(matrix: Matrix) -> int | None:
    """Columns whose mask is chosen at once, with the weights as they have become by then: an N:M group."""
    return matrix.pattern.m if isinstance(matrix.pattern, NofM) else None


def _block_size(matrix: Matrix) -> int:
    group = _group(matrix) or 1
    return max(BLOCK // group, 1) * group


def _choice(matrix: Matrix, before: Tensor, columns: slice) -> Choice:
    """How the pattern chooses among `columns`, with exact counts. before: (out, columns before), what is kept there."""
    if isinstance(matrix.pattern, NofM):
        return lambda saliency: matrix.pattern.select(saliency, matrix.sparsity)
    # The share of all columns up to here, less what those before kept: rounding never adds up.
    if matrix.compare == "row":
        keep = kept_count(columns.stop, matrix.sparsity) - kept_count(columns.start, matrix.sparsity)
        return lambda saliency: select_largest(saliency, keep)
    keep = kept_count(len(before) * columns.stop, matrix.sparsity) - int(torch.count_nonzero(before))
    return lambda saliency: select_largest(saliency.reshape(1, -1), keep).reshape(saliency.shape)


def _prune_block(weight: Tensor, upper: Tensor, choose: Choice, group: int | None) -> tuple[Tensor, Tensor, Tensor]:
    """One block of columns. weight: (out, b); upper: (b, b).

    Returns:
        The pruned weights, their mask, and the errors (w - q) / U_jj by which the columns behind are corrected.
    """
    weight, diagonal = weight.clone(), upper.diagonal()
    errors = torch.zeros_like(weight)
    kept = torch.ones_like(weight, dtype=torch.bool) if group else choose((weight / diagonal).square())
    for j in range(weight.shape[1]):
        if group and j % group == 0:
            span = slice(j, j + group)
            kept[:, span] = choose((weight[:, span] / diagonal[span]).square())
        lost = weight[:, j] * ~kept[:, j]
        errors[:, j] = lost / diagonal[j]
        weight[:, j:].addr_(errors[:, j], upper[j, j:], alpha=-1)
    return weight * kept, kept, errors


REFINEMENTS.add("sparsegpt", Refinement(function=sparsegpt, obstacle=needs_single_weights))
