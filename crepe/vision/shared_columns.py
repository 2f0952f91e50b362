"""Least squares for masks in which many rows keep the same columns, as in row tiles: one system for each set of
columns instead of one for each row."""

from __future__ import annotations

import torch
from torch import Tensor

from crepe.refine.gram import DAMPING, damped


def refit(dense: Tensor, kept: Tensor, gram: Tensor, damping: float = DAMPING) -> Tensor:
    """The weights that `crepe.refine.optimal.least_squares` finds: w'_S = w_S + G_SS^-1 G_SP w_P with the damped G.

    dense, kept: (out, in); gram: (in, in), the sum of x x^T over the inputs of the layer, for a convolution over its
    im2col columns. Returns (out, in) float32, zero where not kept. Where rounding leaves a system without a
    factorisation, its rows keep the weights they have.
    """
    safe = damped(gram, damping)
    result = dense.float() * kept
    demand = (dense.float() - result) @ safe
    supports, members = torch.unique(kept, dim=0, return_inverse=True)
    for index, support in enumerate(supports):
        columns, rows = support.nonzero()[:, 0], (members == index).nonzero()[:, 0]
        lower, failed = torch.linalg.cholesky_ex(safe[columns][:, columns])
        if len(columns) and not bool(failed):
            result[rows[:, None], columns] += torch.cholesky_solve(demand[rows][:, columns].T, lower).T
    return result
