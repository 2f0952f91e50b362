"""SparseSwaps: the best exchange of one kept for one pruned weight, again and again (Zimmer et al. 2025)."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from crepe.masks.matrix import Matrix
from crepe.masks.pattern import NofM
from crepe.refine.base import REFINEMENTS, Refinement
from crepe.refine.rows import batches, keep_better, needs_single_weights

# The strongest weights of each row stay: a lower layer error alone can raise the perplexity, and the authors' masks
# do best with the top 90 % of the saliency frozen (SparseFW and SparseSwaps).
FROZEN_PERCENT = 90
# A bound only: with that freeze, rows of a SmolLM2 down_proj (1536 inputs, 50 %) end after 43 swaps on average.
MAX_SWAPS = 100
# A swap must lower the error of its row by this share: less is rounding of float32.
_LEAST_GAIN = 1e-6
# Pairs looked at together: enough to keep the processor busy, few enough for its cache.
_BUDGET = {"cpu": 2**21, "cuda": 2**28}


def swaps(matrix: Matrix) -> Matrix:
    """Lower the layer error by the best 1-swap of every row, up to MAX_SWAPS times.

    With d = w - w' and u_i the kept weight that goes, w_j the pruned weight that comes back, d gains u_i e_i - w_j e_j
    and the error d G d^T changes by
        2 u_i (G d)_i + u_i^2 G_ii  -  2 w_j (G d)_j + w_j^2 G_jj  -  2 u_i w_j G_ij
    (arXiv 2512.10922, optimal 1-swaps). G d follows every swap by two rows of G. The strongest FROZEN_PERCENT of the
    kept weights of a row, by the criterion's score, never go. Every count stays; N:M swaps stay inside their group.
    """
    removable = matrix.kept & ~strongest(matrix.score, matrix.kept, FROZEN_PERCENT)
    kept, weight = matrix.kept.clone(), matrix.weight.clone()
    budget = _BUDGET.get(weight.device.type, _BUDGET["cuda"])
    for rows in batches(len(kept), _pairs(matrix, removable), budget):
        part = replace(matrix, dense=matrix.dense[rows], weight=weight[rows], kept=kept[rows])
        state = (_GroupPairs if isinstance(matrix.pattern, NofM) else _AnyPairs)(part, removable[rows])
        while state.swapped < MAX_SWAPS and state.swap_best():
            pass
        kept[rows], weight[rows] = state.kept, state.weight
    return keep_better(matrix, matrix.with_mask(kept, weight))


def strongest(score: Tensor, kept: Tensor, percent: int) -> Tensor:
    """The `percent` of the kept weights of each row with the highest score, rounded down; bool (out, in)."""
    order = score.masked_fill(~kept, -torch.inf).argsort(dim=1, descending=True, stable=True)
    frozen = kept.sum(1, keepdim=True) * percent // 100
    return kept & (order.argsort(dim=1) < frozen)


def _pairs(matrix: Matrix, removable: Tensor) -> int:
    """The most pairs that a row has."""
    if isinstance(matrix.pattern, NofM):
        return matrix.dense.shape[1] * matrix.pattern.m
    return int(removable.sum(1).max()) * int((~matrix.kept).sum(1).max())


class _Pairs:
    """Some rows while they are swapped. pull: (rows, in), d G of each row; removable: bool (rows, in)."""

    def __init__(self, matrix: Matrix, removable: Tensor) -> None:
        self.gram, self.diagonal = matrix.gram, matrix.gram.diagonal()
        self.dense, self.weight, self.kept = matrix.dense, matrix.weight.clone(), matrix.kept.clone()
        self.removable = removable.clone()
        self.pull = (self.dense - self.weight) @ self.gram
        self.error = (self.pull * (self.dense - self.weight)).sum(1)
        self.swapped = 0

    def swap_best(self) -> bool:
        """The best swap in every row that has one that lowers its error; False where no row has."""
        change, removed, added = self.best(*self.costs())
        rows = (change < -_LEAST_GAIN * self.error.clamp_min(0)).nonzero()[:, 0]
        self.error[rows] += change[rows]
        self.swap(rows, removed[rows], added[rows])
        self.swapped += 1
        return bool(len(rows))

    def costs(self) -> tuple[Tensor, Tensor]:
        """What it costs to remove and to add each weight by itself, (rows, in); infinite where it cannot be done."""
        remove = (2 * self.pull + self.weight * self.diagonal) * self.weight
        add = (self.dense * self.diagonal - 2 * self.pull) * self.dense
        return remove.masked_fill_(~self.removable, torch.inf), add.masked_fill_(self.kept, torch.inf)

    def best(self, remove: Tensor, add: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The lowest change of the error of each row and the columns that reach it, each (rows,)."""
        raise NotImplementedError

    def swap(self, rows: Tensor, removed: Tensor, added: Tensor) -> None:
        """Swap the columns `removed` and `added` in `rows`, each (some,)."""
        gone, back = self.weight[rows, removed, None], self.dense[rows, added, None]
        self.pull[rows] += gone * self.gram[removed] - back * self.gram[added]
        self.weight[rows, removed], self.weight[rows, added] = 0.0, self.dense[rows, added]
        self.kept[rows, removed], self.kept[rows, added] = False, True
        self.removable[rows, removed], self.removable[rows, added] = False, True


class _AnyPairs(_Pairs):
    """Pairs anywhere in a row.

    The joint term -2 u_i w_j G_ij changes only for the weights that are swapped, so it is kept: coupling is
    (rows, r, a) over the columns in `outward` (rows, r), which may go, and `inward` (rows, a), which may come.
    A row with fewer of either fills up with columns whose cost is infinite.
    """

    def __init__(self, matrix: Matrix, removable: Tensor) -> None:
        super().__init__(matrix, removable)
        self.outward, self.inward = _members(self.removable), _members(~self.kept)
        self.coupling = self.gram[self.outward[:, :, None], self.inward[:, None, :]]
        self.coupling *= self.weight.gather(1, self.outward)[:, :, None]
        self.coupling *= -2 * self.dense.gather(1, self.inward)[:, None, :]
        self.slots = (self.outward, self.inward)

    def best(self, remove: Tensor, add: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if not self.outward.shape[1] or not self.inward.shape[1]:
            none = torch.zeros(len(add), dtype=torch.int64, device=add.device)
            return torch.zeros_like(self.error), none, none
        come = add.gather(1, self.inward)
        change, first = ((self.coupling + come[:, None, :]).amin(2) + remove.gather(1, self.outward)).min(1)
        rows = torch.arange(len(add), device=add.device)
        second = (self.coupling[rows, first] + come).argmin(1)
        self.slots = (first, second)
        return change, self.outward[rows, first], self.inward[rows, second]

    def swap(self, rows: Tensor, removed: Tensor, added: Tensor) -> None:
        super().swap(rows, removed, added)
        first, second = (slot[rows] for slot in self.slots)
        self.outward[rows, first], self.inward[rows, second] = added, removed
        outward, inward = self.outward[rows], self.inward[rows]
        rising = -2 * self.dense[rows, added, None] * self.dense[rows].gather(1, inward)
        self.coupling[rows, first] = rising * self.gram[added[:, None], inward]
        falling = -2 * self.dense[rows, removed, None] * self.weight[rows].gather(1, outward)
        self.coupling[rows, :, second] = falling * self.gram[removed[:, None], outward]


class _GroupPairs(_Pairs):
    """Pairs inside the groups of an N:M pattern: few enough to look at all of them anew each time."""

    def __init__(self, matrix: Matrix, removable: Tensor) -> None:
        super().__init__(matrix, removable)
        assert isinstance(matrix.pattern, NofM)
        self.size = matrix.pattern.m
        columns = torch.arange(matrix.dense.shape[1], device=matrix.dense.device).view(-1, self.size)
        self.blocks = -2 * self.gram[columns[:, :, None], columns[:, None, :]]

    def best(self, remove: Tensor, add: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        rows = len(add)
        shape = (rows, -1, self.size)
        change = self.blocks * self.weight.reshape(shape)[..., :, None] * self.dense.reshape(shape)[..., None, :]
        change += add.reshape(shape)[..., None, :]
        # (rows, in): the best partner of every weight that may go.
        lowest, partner = change.min(-1)
        found, removed = (lowest.reshape(rows, -1) + remove).min(1)
        inside = partner.reshape(rows, -1).gather(1, removed[:, None])[:, 0]
        return found, removed, removed // self.size * self.size + inside


def _members(mask: Tensor) -> Tensor:
    """The columns that are True in each row, and others behind them where a row has fewer than the largest;
    mask: bool (rows, in) -> int64 (rows, most)."""
    most = int(mask.sum(1).max()) if len(mask) else 0
    return mask.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :most].contiguous()


REFINEMENTS.add("swaps", Refinement(function=swaps, obstacle=needs_single_weights))
