"""The exact least-squares weights for a mask: one linear system for each row."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from crepe.masks.matrix import Matrix
from crepe.refine.base import REFINEMENTS, Refinement
from crepe.refine.gram import damped
from crepe.refine.rows import batches, keep_better

# Numbers in the systems that are solved together (128 MB), unless one row's system alone is larger.
_BUDGET = 2**25


def optimal(matrix: Matrix) -> Matrix:
    """The weights on the mask that minimise the layer error: w'_S = G_SS^-1 G_S: w for each row w with support S.

    G is damped, which draws w' towards w. A row is kept as it was where its undamped error did not fall. Costs
    |S|^3 / 3 operations for each row: for wide matrices `cg` comes close for less.
    """
    return keep_better(matrix, matrix.with_mask(matrix.kept, least_squares(matrix.dense, matrix.kept, matrix.gram)))


def least_squares(dense: Tensor, kept: Tensor, gram: Tensor) -> Tensor:
    """argmin over w' supported on `kept` of (w - w') G (w - w')^T with the damped G, row by row.

    Solved for the correction c = w'_S - w_S, which is small: G_SS c = G_SP w_P, P being the pruned weights.
    dense, kept: (out, in); gram: (in, in). Returns (out, in).
    """
    safe = damped(gram)
    result = dense * kept
    demand = (dense - result) @ safe
    if bool((kept == kept[:1]).all()):  # whole columns are gone: one system for all rows
        return _solve_together(result, demand, kept[0], safe)
    for rows, columns, filled in _supports(kept):
        right = demand[rows].gather(1, columns) * filled
        result[rows] += torch.zeros_like(result[rows]).scatter_(1, columns, _solve(safe, columns, filled, right))
    return result


def _solve_together(result: Tensor, demand: Tensor, kept: Tensor, gram: Tensor) -> Tensor:
    """`result` (out, in) with the correction on the columns `kept` (in,); as it is where the system is not definite."""
    columns = kept.nonzero()[:, 0]
    lower, failed = torch.linalg.cholesky_ex(gram[columns][:, columns])
    if bool(failed):
        return result
    return result.index_add(1, columns, torch.cholesky_solve(demand[:, columns].T, lower).T)


def _supports(kept: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Batches of rows of similar support: row numbers (b,), columns (b, s) int64, and bool (b, s), False for those
    that only fill up a row to the largest support s of its batch."""
    counts = kept.sum(1)
    order = counts.argsort(stable=True, descending=True)
    largest = int(counts.max()) if len(counts) else 0
    for part in batches(len(order), largest**2, _BUDGET):
        rows = order[part]
        size = int(counts[rows[0]])
        if size:
            columns = kept[rows].to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :size]
            yield rows, columns, torch.arange(size, device=kept.device) < counts[rows, None]


def _solve(gram: Tensor, columns: Tensor, filled: Tensor, right: Tensor) -> Tensor:
    """G_SS^-1 right for every row, with the identity where a support is not filled; 0 where a system is not definite.

    columns, filled, right: (b, s). Returns (b, s).
    """
    systems = gram[columns[:, :, None], columns[:, None, :]]
    if not bool(filled.all()):
        systems *= filled[:, :, None] & filled[:, None, :]
        systems.diagonal(dim1=1, dim2=2).add_(~filled)
    lower, failed = torch.linalg.cholesky_ex(systems)
    solution = torch.cholesky_solve(right[..., None], lower)[..., 0]
    return solution.masked_fill((failed != 0)[:, None], 0.0)


REFINEMENTS.add("optimal", Refinement(function=optimal))
