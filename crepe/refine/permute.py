"""Permute: choose the mask in an order of the input columns in which an N:M selection keeps more score (RIA).

Where the order stays with the tensor alone, the weights do not move in the model, so the mask that comes out is N:M
in the order found only. To get N:M in the model's own order, see `crepe.refine.fold`.
"""

from __future__ import annotations

from crepe.masks.matrix import Matrix
from crepe.masks.pattern import NofM
from crepe.refine.base import REFINEMENTS, Refinement
from crepe.refine.permutation import best_order, needs_groups


def permute(matrix: Matrix) -> Matrix:
    """The matrix in the best order found, with the mask selected there and the dense weights where it keeps them."""
    assert isinstance(matrix.pattern, NofM), "the obstacle lets no other pattern through"
    reordered = matrix.reordered(best_order(matrix.score, matrix.pattern.n, matrix.pattern.m))
    return reordered.with_mask(matrix.pattern.select(reordered.score, matrix.sparsity, matrix.compare))


REFINEMENTS.add("permute", Refinement(function=permute, obstacle=needs_groups))
