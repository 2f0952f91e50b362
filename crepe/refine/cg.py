"""Weights for a mask by preconditioned conjugate gradients, all rows at once: the way for wide matrices."""

from __future__ import annotations

import torch
from torch import Tensor

from crepe.masks.matrix import Matrix
from crepe.refine.base import REFINEMENTS, Refinement
from crepe.refine.gram import damped
from crepe.refine.rows import keep_better

ITERATIONS = 100
# A row is done when a step lowers its error by less than this share of what is left of it.
TOLERANCE = 1e-4


def cg(matrix: Matrix) -> Matrix:
    """Lower the layer error with the mask as it is, from the weights as they are.

    Each step costs one product with the Gram matrix, out in^2, where `optimal` costs |S|^3 / 3 for every row. The
    damped error falls with every step; a row is kept as it was where its undamped error did not fall.
    """
    weight = conjugate_gradients(matrix.dense, matrix.weight, matrix.kept, damped(matrix.gram))
    return keep_better(matrix, matrix.with_mask(matrix.kept, weight))


def conjugate_gradients(
    dense: Tensor,
    weight: Tensor,
    kept: Tensor,
    gram: Tensor,
    iterations: int = ITERATIONS,
    tolerance: float = TOLERANCE,
) -> Tensor:
    """Minimise (w - w') G (w - w')^T over w' supported on `kept`, row by row, from w' = weight.

    Preconditioned by the diagonal of G (Jacobi); see Saad, Iterative Methods for Sparse Linear Systems, algorithm
    9.1. dense, weight, kept: (out, in); gram: (in, in), positive definite. Returns (out, in).
    """
    result = weight * kept
    rows = torch.arange(len(dense), device=dense.device)
    pull = (dense - result) @ gram
    error = (pull * (dense - result)).sum(1)
    residual = pull * kept
    preconditioned = residual / gram.diagonal()
    direction, power = preconditioned, (residual * preconditioned).sum(1)
    for _ in range(iterations):
        ahead = (direction @ gram).mul_(kept)
        step = _ratio(power, (direction * ahead).sum(1))
        result[rows] += step[:, None] * direction
        residual = residual - step[:, None] * ahead
        fall, error = step * power, error - step * power
        busy = fall > tolerance * error
        if not bool(busy.any()):
            break
        preconditioned = residual / gram.diagonal()
        power, before = (residual * preconditioned).sum(1), power
        direction = preconditioned + _ratio(power, before)[:, None] * direction
        if not bool(busy.all()):
            rows, kept, residual, direction, power, error = (
                state[busy] for state in (rows, kept, residual, direction, power, error)
            )
    return result


def _ratio(over: Tensor, under: Tensor) -> Tensor:
    """over / under, and 0 where `under` is 0: a row that is already solved takes no step."""
    return torch.where(under > 0, over / under, torch.zeros_like(over))


REFINEMENTS.add("cg", Refinement(function=cg))
