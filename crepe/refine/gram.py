"""Gram matrices made safe to invert: the damping rule that all solvers share."""

from __future__ import annotations

import torch
from torch import Tensor

from crepe.errors import CrepeError

# Share of the mean diagonal that is added to the diagonal. The usual hundredth fits the calibration tokens closely and
# gains little on others: see "Damping" in docs/results/quality.md.
DAMPING = 0.3
# Where that does not suffice (fewer tokens than channels in low precision), it is raised tenfold up to this share.
_STRONGEST = 1e3


def damped(gram: Tensor, fraction: float = DAMPING) -> Tensor:
    """G + fraction * mean(diag G) I, (in, in) float32. A dead channel (diagonal 0) gets 1 on its diagonal.

    Raises:
        CrepeError: the matrix holds NaN or infinite values.
    """
    diagonal = gram.diagonal()
    if not bool(torch.isfinite(diagonal).all()) or not bool(torch.isfinite(gram.sum())):
        raise CrepeError("a Gram matrix holds NaN or infinite values: the model's activations overflow; try float32")
    result = gram.float().clone()
    dead = diagonal == 0
    added = fraction * diagonal.mean()
    result.diagonal().add_(added)
    result.diagonal()[dead] = 1.0
    return result


def factor(gram: Tensor, fraction: float = DAMPING) -> Tensor:
    """Lower Cholesky factor L of the damped Gram matrix, G + damping = L L^T, (in, in).

    Rounding can make a singular matrix indefinite in spite of the damping: then the damping is raised tenfold, again
    and again, never replaced by the identity.

    Raises:
        CrepeError: NaN, or a matrix that no damping makes positive definite.
    """
    while fraction <= _STRONGEST:
        lower, failed = torch.linalg.cholesky_ex(damped(gram, fraction))
        if not bool(failed):
            found: Tensor = lower
            return found
        fraction *= 10
    raise CrepeError("a Gram matrix cannot be made positive definite: the calibration activations are broken")


def inverse_factor(gram: Tensor, fraction: float = DAMPING) -> Tensor:
    """Upper Cholesky factor U of the damped inverse, (G + damping)^-1 = U^T U, (in, in).

    Row j of U, divided by U_jj, says how the weights behind column j make up for what column j loses (SparseGPT).
    """
    inverse = torch.cholesky_inverse(factor(gram, fraction))
    upper, failed = torch.linalg.cholesky_ex(inverse, upper=True)
    if bool(failed):
        return inverse_factor(gram, fraction * 10)
    found: Tensor = upper
    return found
