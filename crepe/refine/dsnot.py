"""DSnoT: grow and prune by the mean of the inputs, without a weight update (Zhang et al., ICLR 2024)."""

from __future__ import annotations

import torch
from torch import Tensor

from crepe.masks.matrix import Matrix
from crepe.refine.base import REFINEMENTS, Refinement
from crepe.refine.rows import group_size, keep_better, needs_single_weights

CYCLES = 50
# The authors stop at 0.1 with inputs summed over a sequence, and theirs have 2048 tokens; here inputs are means.
THRESHOLD = 0.1 / 2048
VARIANCE_POWER = 1.0
# Variances below this share of the largest are rounding; they would make a constant channel infinitely good.
_LEAST_VARIANCE = 1e-7


def dsnot(matrix: Matrix) -> Matrix:
    """Swap weights until the expected output error E[(w - w') x] of each row is about zero.

    Each cycle swaps one pair in every row: the pruned weight with the largest w E[x] / Var(x)^p of the error's sign
    grows back (section 3.2, growing criterion), and of the kept weights whose removal pulls the error towards zero
    the one with the lowest |w| ||x||_2 goes (pruning criterion). No weight is swapped twice, every count stays, and
    N:M swaps stay inside their group. The authors go on where a swap overshoots; here a row ends where its next swap
    would not bring its expected error closer to zero. The rule looks at the mean only and can raise the layer error
    d G d^T: a row whose error did not fall keeps its old mask, so that the result is never worse.
    """
    statistics = matrix.statistics
    mean, tokens = statistics["mean"].float(), statistics["tokens"].double()
    kept = _swapped(matrix, mean, _variance(matrix.gram, mean, tokens))
    weight = torch.where(matrix.kept, matrix.weight, matrix.dense)
    return keep_better(matrix, matrix.with_mask(kept, weight))


def _variance(gram: Tensor, mean: Tensor, tokens: Tensor) -> Tensor:
    """Var(x) = E[x^2] - E[x]^2 of every channel, (in,) float32, kept off zero."""
    variance = gram.diagonal().double() / tokens.clamp_min(1) - mean.double().square()
    floor = (variance.max() * _LEAST_VARIANCE).clamp_min(torch.finfo(torch.float32).tiny)
    return torch.maximum(variance, floor).float()


def _swapped(matrix: Matrix, mean: Tensor, variance: Tensor) -> Tensor:
    """The mask (out, in) after at most CYCLES swaps in every row. mean, variance: (in,)."""
    gain, loss = matrix.dense * mean, matrix.weight * mean
    growth = gain / variance.pow(VARIANCE_POWER)
    strength = matrix.weight.abs() * matrix.gram.diagonal().clamp_min(0).sqrt()
    error = ((matrix.dense - matrix.weight) * mean).sum(1)
    kept, growable, prunable = matrix.kept.clone(), ~matrix.kept, matrix.kept.clone()
    for _ in range(CYCLES):
        sign = error.sign()[:, None]
        helpful = prunable & (loss * sign < 0)
        grown, pruned, found = _pick(growth * sign, growable, strength, helpful, group_size(matrix))
        after = error + loss.gather(1, pruned[:, None])[:, 0] - gain.gather(1, grown[:, None])[:, 0]
        rows = (found & (error.abs() > THRESHOLD) & (after.abs() < error.abs())).nonzero()[:, 0]
        if not len(rows):
            break
        grown, pruned = grown[rows], pruned[rows]
        error[rows] = after[rows]
        kept[rows, grown], kept[rows, pruned] = True, False
        growable[rows, grown], prunable[rows, pruned] = False, False
    return kept


def _pick(
    growth: Tensor, growable: Tensor, strength: Tensor, prunable: Tensor, group: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The pair to swap in every row, and whether there is one. All arguments: (out, in), the last the group's width.

    Returns:
        Columns to grow and to prune, int64 (out,), of one group; bool (out,).
    """
    rows, columns = growth.shape
    partner = prunable.reshape(rows, -1, group).any(-1).repeat_interleave(group, 1)
    best, grown = growth.masked_fill(~(growable & partner), 0.0).max(1)
    if group < columns:
        here = torch.arange(columns, device=growth.device) // group == (grown // group)[:, None]
        prunable = prunable & here
    pruned = strength.masked_fill(~prunable, torch.inf).argmin(1)
    return grown, pruned, best > 0


REFINEMENTS.add(
    "dsnot",
    Refinement(function=dsnot, needs=frozenset({"gram", "mean", "tokens"}), obstacle=needs_single_weights),
)
