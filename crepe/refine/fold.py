"""Fold: the best order of a matrix' input columns among those that its producers can follow in their output rows.

The matrix is N:M in the model's own order then, and the model computes what it computed before.
"""

from __future__ import annotations

import torch
from torch import Tensor

from crepe.refine.base import REFINEMENTS, Folding
from crepe.refine.permutation import best_order, needs_groups


def folded_order(score: Tensor, groups: Tensor, n: int, m: int) -> Tensor:
    """The order of all columns that keeps the most score found; never less than the order as it stands.

    score: (out, in) of the consumer; groups: (blocks, tied, size) column numbers: a column may move inside its group
    of `size` only, and the `tied` groups of a block move alike, as heads do that read one key-value head. A block
    whose groups are not whole groups of m neighbours stays as it is, and so do columns that no group names.
    Returns (in,) int64: position j takes column order[j].
    """
    order = torch.arange(score.shape[1], device=score.device)
    for block in groups.to(score.device):
        if not _whole_groups(block, m):
            continue
        # Tied groups are one matrix with more rows: every row of every group has its say on the one inner order.
        inner = best_order(torch.cat([score[:, columns] for columns in block]), n, m)
        order[block] = block[:, inner]
    return order


def _whole_groups(block: Tensor, m: int) -> bool:
    """Do the column groups (tied, size) consist of runs of m neighbours that an N:M selection takes together?"""
    if block.shape[1] % m:
        return False
    runs = block.reshape(-1, m)
    steps = torch.arange(m, device=block.device)
    return bool(((runs[:, :1] + steps == runs) & (runs[:, :1] % m == 0)).all())


# It is found by running the block, so calibration activations have to be there.
REFINEMENTS.add("fold", Folding(function=folded_order, needs=frozenset({"norm"}), obstacle=needs_groups))
