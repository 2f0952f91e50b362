"""ALPS: a new mask and its weights by ADMM on the layer's least squares (Meng et al., NeurIPS 2024)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from crepe.masks.matrix import Matrix
from crepe.refine.base import REFINEMENTS, Refinement
from crepe.refine.cg import conjugate_gradients
from crepe.refine.gram import damped
from crepe.refine.rows import keep_better, needs_own_mask

ITERATIONS = 300
# The authors' schedule: every third iteration the penalty grows, the faster the more the support still changes.
RHO = 0.1
RHO_EVERY = 3
# (share of the kept weights that changed, factor); below the last share but not zero it grows by RHO_SLOWEST.
RHO_GROWTH = ((0.1, 1.3), (0.005, 1.2))
RHO_SLOWEST = 1.1
# A penalty under which nothing moves at the start is too high; it is lowered by this factor.
RHO_RETREAT = 5.0
# After this many iterations a change of less than this share of the kept weights ends the search (authors' code).
SETTLED_AFTER = 30
SETTLED_SHARE = 3e-4


def admm(matrix: Matrix) -> Matrix:
    """Choose a new mask together with new weights: minimise the layer error under the sparsity of the pattern.

    ADMM splits the weights into B, which fits the outputs, and D, which obeys the pattern (algorithm 1 of the paper):
        B = (B0 A - V + rho D) (A + rho I)^-1,   D = the pattern's projection of B + V / rho,   V += rho (B - D)
    where columns are scaled by diag(G)^1/2: A = S^-1 G S^-1 with a unit diagonal, B0 = W S (section 3.3). The last
    support is refitted by `cg`. Starts from the mask and weights as they are; the better of before and after, by the
    layer error, is returned.
    """
    gram = damped(matrix.gram)
    scale = gram.diagonal().sqrt()
    # Weights of channels that are always zero matter to nobody: they must not take the place of others.
    target = matrix.dense * scale * (matrix.gram.diagonal() > 0)
    kept, weight = _search(matrix, _Solver.of(gram / scale / scale[:, None]), target, matrix.weight * scale)
    weight = conjugate_gradients(matrix.dense, weight / scale, kept, gram)
    return keep_better(matrix, matrix.with_mask(kept, weight))


@dataclass(frozen=True)
class _Solver:
    """A = Q diag(values) Q^T, decomposed once so that A + rho I is cheap to invert for every rho. Each (in, in)."""

    matrix: Tensor
    values: Tensor
    vectors: Tensor

    @classmethod
    def of(cls, matrix: Tensor) -> _Solver:
        try:
            values, vectors = torch.linalg.eigh(matrix)
        except RuntimeError:  # it does not converge: many equal eigenvalues in float32
            values, vectors = (found.to(matrix) for found in torch.linalg.eigh(matrix.double().cpu()))
        return cls(matrix, values.clamp_min(0), vectors)

    def inverse(self, rho: float) -> Tensor:
        """(A + rho I)^-1, (in, in)."""
        return (self.vectors / (self.values + rho)) @ self.vectors.T


def _search(matrix: Matrix, solver: _Solver, target: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
    """The support that ADMM ends with and the weights on it, in scaled columns. target, start: (out, in)."""
    outputs = target @ solver.matrix
    rho, moved, support = RHO, False, matrix.kept
    inverse = solver.inverse(rho)
    sparse, dual, kept = start, torch.zeros_like(start), matrix.kept
    for iteration in range(1, ITERATIONS + 1):
        fit = (outputs - dual + rho * sparse) @ inverse
        wanted = fit + dual / rho
        kept = _select(matrix, wanted)
        sparse = wanted * kept
        dual = rho * (wanted - sparse)
        if iteration % RHO_EVERY:
            continue
        change = _changed_share(support, kept)
        support = kept
        if _settled(change, moved, iteration):
            break
        if change < RHO_GROWTH[-1][0] and not moved:
            rho = rho / RHO_RETREAT
            sparse, dual, support = start, torch.zeros_like(start), matrix.kept
        else:
            moved, rho = True, rho * _growth(change)
        inverse = solver.inverse(rho)
    kept = _select(matrix, fit)
    return kept, fit * kept


def _select(matrix: Matrix, weight: Tensor) -> Tensor:
    """The pattern's choice of the largest weights, bool (out, in): the projection onto the pattern."""
    return matrix.pattern.select(weight.square(), matrix.sparsity, matrix.compare)


def _changed_share(before: Tensor, after: Tensor) -> float:
    """Weights in one support but not in the other, over the weights kept."""
    return float((before ^ after).sum()) / max(int(after.sum()), 1)


def _settled(change: float, moved: bool, iteration: int) -> bool:
    return (moved and change == 0) or (iteration > SETTLED_AFTER and change < SETTLED_SHARE)


def _growth(change: float) -> float:
    return next((factor for share, factor in RHO_GROWTH if change > share), RHO_SLOWEST)


REFINEMENTS.add("admm", Refinement(function=admm, obstacle=needs_own_mask))
