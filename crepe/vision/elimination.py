"""What the output of a layer loses with each of its weights, the others being fitted again after every loss.

Backward elimination by least squares (optimal brain surgeon, Hassibi and Stork 1993), greedy over groups of weights.
With the damped covariance C of the inputs and H = C^-1, taking the weights b of a matrix W away costs
tr(W_b H_bb^-1 W_b^T) of squared output error, and the best the others can do is W - W_b H_bb^-1 H_b. So the costs say
which weights can be missed given that `compensate` or `sequential` fits what stays.
"""

from __future__ import annotations

import torch
from torch import Tensor

from crepe.refine.gram import DAMPING, factor

# Rows of a system are dropped when this share of them has gone: copying costs less than carrying them on.
_DROP = 0.75


def tap_costs(weight: Tensor, covariance: Tensor, scale: Tensor | None = None, damping: float = DAMPING) -> Tensor:
    """Cost of each tap of each channel at the moment when it would go, never below the ones that went before it.

    weight: (channels, taps); covariance: (channels, taps, taps), of the channel's inputs; scale: (channels,), what the
    batch norm behind multiplies each channel with. Returns (channels, taps) float32; the last tap costs infinity.
    """
    left = weight.float() * (1.0 if scale is None else scale.float()[:, None])
    inverse = torch.stack([_inverse(one, damping) for one in covariance])
    found, every = torch.full_like(left, torch.inf), torch.arange(len(left), device=left.device)
    paid = torch.zeros(len(left), device=left.device)
    for _ in range(weight.shape[1] - 1):
        costs = (left.square() / inverse.diagonal(dim1=1, dim2=2)).masked_fill(found.isfinite(), torch.inf)
        cheapest = costs.argmin(1)
        paid = torch.maximum(paid, costs[every, cheapest])
        found[every, cheapest] = paid
        rows = inverse[every, cheapest]
        pivots = rows[every, cheapest]
        left = left - (left[every, cheapest] / pivots)[:, None] * rows
        inverse = inverse - rows[:, :, None] * (rows / pivots[:, None])[:, None, :]
        inverse[every, cheapest, cheapest] = 1.0
    return found


def block_costs(matrix: Tensor, covariance: Tensor, columns: int, damping: float = DAMPING) -> Tensor:
    """Cost of each block of `columns` neighbouring columns of one row tile, as `tap_costs`.

    matrix: (rows, in), each row times what the batch norm behind multiplies it with; covariance: (in, in). Returns
    (in / columns,) float32; the last block costs infinity.
    """
    left, inverse = matrix.float(), _inverse(covariance, damping)
    found = torch.full((matrix.shape[1] // columns,), torch.inf, device=matrix.device)
    places, alive = torch.arange(len(found), device=matrix.device), torch.ones_like(found, dtype=torch.bool)
    paid = 0.0
    for _ in range(len(found) - 1):
        costs = _costs(left, inverse, columns).masked_fill(~alive, torch.inf)
        block = int(costs.argmin())
        paid = max(paid, float(costs[block]))
        found[places[block]], alive[block] = paid, False
        left, inverse = _without(left, inverse, slice(block * columns, (block + 1) * columns))
        if int(alive.sum()) <= _DROP * len(alive):
            kept = alive.repeat_interleave(columns)
            left, inverse, places, alive = left[:, kept], inverse[kept][:, kept], places[alive], alive[alive]
    return found


def _inverse(covariance: Tensor, damping: float) -> Tensor:
    found: Tensor = torch.cholesky_inverse(factor(covariance, damping))
    return found


def _costs(left: Tensor, inverse: Tensor, columns: int) -> Tensor:
    """tr(W_b H_bb^-1 W_b^T) of every block; blocks that have gone hold the identity and no weight."""
    if columns == 1:
        return left.square().sum(0) / inverse.diagonal()
    blocks = left.shape[1] // columns
    apart = inverse.view(blocks, columns, blocks, columns).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
    weights = left.view(len(left), blocks, columns).permute(1, 2, 0)
    found: Tensor = (weights * torch.linalg.solve(apart, weights)).sum((1, 2))
    return found


def _without(left: Tensor, inverse: Tensor, block: slice) -> tuple[Tensor, Tensor]:
    """W and H once the columns `block` have gone and the others have been fitted again."""
    share = torch.linalg.solve(inverse[block, block], inverse[block])
    left = left - left[:, block] @ share
    inverse = inverse - inverse[:, block] @ share
    left[:, block] = 0.0
    inverse[block], inverse[:, block] = 0.0, 0.0
    inverse.diagonal()[block] = 1.0
    return left, inverse
