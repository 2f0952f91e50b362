"""The order of output rows before they are cut into tiles: rows that need the same columns come together.

An option of ours on top of BCBP. It changes which weights a balanced mask can keep, never how much work a tile is; the
order is undone by writing the rows of a tile back to where they belong.
"""

from __future__ import annotations

import torch
from torch import Tensor

from crepe.masks.colblock import ColBlock


def row_order(matrix: Tensor, pattern: ColBlock, keep: int, rounds: int = 8) -> Tensor:
    """Order of the rows, (out,) int64, in which tiles that keep `keep` blocks each keep more of the squared weights.

    Alternates two exact steps, like k-means with clusters of fixed size: the best blocks for the rows of each tile, and
    the best assignment of rows to places of tiles for these blocks. No step loses, so the result is never worse than
    the order as it is. matrix: (out, in); ends after `rounds` or when nothing gains.
    """
    energy = matrix.detach().double().square().reshape(len(matrix), -1, pattern.columns).sum(-1).cpu()
    order = _by_direction(energy)
    candidates = [torch.arange(len(energy)), order]
    order = max(candidates, key=lambda rows: _kept(energy[rows], pattern, keep))
    best = _kept(energy[order], pattern, keep)
    for _ in range(rounds):
        proposal = _assigned(energy, _tile_blocks(energy[order], pattern, keep), pattern)
        found = _kept(energy[proposal], pattern, keep)
        if found <= best * (1 + 1e-12):
            break
        order, best = proposal, found
    return order


def _by_direction(energy: Tensor) -> Tensor:
    """Rows sorted along the direction in which their shares of energy differ most. energy: (out, blocks)."""
    shares = energy / energy.sum(1, keepdim=True).clamp(min=torch.finfo(energy.dtype).tiny)
    centred = shares - shares.mean(0)
    direction = torch.linalg.svd(centred, full_matrices=False).Vh[0]
    # The sign of a singular vector is arbitrary: its largest entry is made positive.
    direction = direction * direction[direction.abs().argmax()].sign()
    order: Tensor = (centred @ direction).argsort(stable=True)
    return order


def _tile_blocks(energy: Tensor, pattern: ColBlock, keep: int) -> Tensor:
    """bool (tiles, blocks): the `keep` best blocks of each tile."""
    sums = ColBlock(pattern.rows, 1).blocks(energy)
    best = sums.argsort(dim=1, descending=True, stable=True)[:, :keep]
    return torch.zeros_like(sums, dtype=torch.bool).scatter_(1, best, True)


def _kept(energy: Tensor, pattern: ColBlock, keep: int) -> float:
    blocks = ColBlock(pattern.rows, 1).spread(_tile_blocks(energy, pattern, keep), len(energy))
    return float((energy * blocks).sum())


def _assigned(energy: Tensor, blocks: Tensor, pattern: ColBlock) -> Tensor:
    """The order of rows whose tiles, with their `blocks` kept, hold the most energy."""
    from scipy.optimize import linear_sum_assignment

    worth = energy @ blocks.double().T
    places = worth.repeat_interleave(pattern.rows, 1)[:, : len(energy)]
    rows, taken = linear_sum_assignment(places.numpy(), maximize=True)
    tile = torch.empty(len(energy), dtype=torch.long)
    tile[torch.from_numpy(rows)] = torch.from_numpy(taken) // pattern.rows
    # Rows of a tile stay in the order of the model.
    return tile.argsort(stable=True)
