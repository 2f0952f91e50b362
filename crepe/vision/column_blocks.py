"""Balanced column blocks of convolutions and linear layers, in three steps: pre-pruning, recalibration, balanced
pruning (BCBP, AAAI 2023).

The three steps, the tiles and the idea of equal work are the paper's; its text is not public in full, and the unit
norm, the rounding, the sizes and the figure of imbalance are our reconstruction.

A convolution is seen as its im2col matrix (out, in * kh * kw), a Linear as it is; a row tile is `pattern.rows` outputs,
a block `pattern.columns` columns of a tile. With one column in a block, the blocks are the vectors of the paper.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from crepe.errors import CrepeError
from crepe.masks.colblock import ColBlock
from crepe.masks.select import kept_count, select_largest


def block_norms(matrix: Tensor, pattern: ColBlock) -> Tensor:
    """Root mean square of every block, (tiles, in / columns): the l2 norm over the root of the block's size, so that
    layers, and a last tile of fewer rows, can be compared. matrix: (out, in)."""
    squares = pattern.blocks(matrix.detach().float().square())
    return (squares / _sizes(matrix, pattern)).sqrt()


def natural_shares(norms: Mapping[str, Tensor], sparsity: float) -> dict[str, Tensor]:
    """Step 1, pre-pruning: what each tile would lose to one threshold over the whole network.

    norms: name -> (tiles, blocks). The smallest `sparsity` of all blocks go (rounded half up; of equal blocks the
    later ones). Returns name -> (tiles,), shares from 0 to 1.
    """
    flat = torch.cat([norm.flatten() for norm in norms.values()])
    gone = ~select_largest(flat[None], kept_count(len(flat), sparsity))[0]
    shares, start = {}, 0
    for name, norm in norms.items():
        shares[name] = gone[start : start + norm.numel()].reshape(norm.shape).float().mean(1)
        start += norm.numel()
    return shares


def kept_blocks(shares: Tensor, blocks: int, step: int = 1) -> int:
    """Step 2, recalibration: the blocks that every tile of a layer keeps.

    blocks * (1 - mean of the tiles' shares), rounded to a multiple of `step` (half up), from `step` to `blocks`.
    shares: (tiles,).
    """
    wanted = blocks * (1 - float(shares.double().mean()))
    return min(max(int(wanted / step + 0.5), 1) * step, blocks)


def balanced(matrix: Tensor, pattern: ColBlock, keep: int) -> Tensor:
    """Step 3: the mask of the `keep` blocks of largest norm in every tile, bool (out, in).

    Raises:
        CrepeError: `keep` is not from 0 to the number of blocks.
    """
    blocks = matrix.shape[1] // pattern.columns
    if not 0 <= keep <= blocks:
        raise CrepeError(f"{keep} blocks cannot be kept of {blocks}: choose from 0 to {blocks}")
    return pattern.select(matrix.detach().float().square(), 1 - keep / blocks)


def select_blocks(
    matrices: Mapping[str, Tensor], pattern: ColBlock, sparsity: float, step: int = 1
) -> dict[str, Tensor]:
    """The three steps: masks of matrices (out, in) by name; every matrix must fit the pattern.

    step: kept blocks are a multiple of it, so that kept columns fill the depth of a matrix instruction.
    """
    shares = natural_shares({name: block_norms(m, pattern) for name, m in matrices.items()}, sparsity)
    keep = {name: kept_blocks(shares[name], m.shape[1] // pattern.columns, step) for name, m in matrices.items()}
    return {name: balanced(matrix, pattern, keep[name]) for name, matrix in matrices.items()}


def imbalance(kept: Tensor, pattern: ColBlock) -> float:
    """max over tiles of their work / mean of their work - 1, work being kept blocks: 0.0 where all tiles wait for none.

    kept: bool (out, in). Our reading of the paper's figure of workload imbalance.
    """
    work = (pattern.blocks(kept.float()) > 0).sum(1).double()
    return float(work.max() / work.mean() - 1) if bool(work.any()) else 0.0


def _sizes(matrix: Tensor, pattern: ColBlock) -> Tensor:
    """Weights in a block of each tile, (tiles, 1)."""
    return pattern.blocks(torch.ones(len(matrix), pattern.columns, device=matrix.device))
