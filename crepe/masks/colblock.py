"""Balanced column blocks: `colblock:RxC`, the pattern of BCBP, which kernels run as a smaller dense product."""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from torch import Tensor

from crepe.errors import CrepeError, UsageError
from crepe.masks.pattern import Compare, Pattern
from crepe.masks.select import kept_count, select_largest


@dataclass(frozen=True)
class ColBlock(Pattern):
    """Whole blocks of `columns` neighbouring inputs, kept or removed for `rows` neighbouring outputs together.

    Every tile of `rows` outputs keeps the same number of blocks, so that all of them are the same work; the last tile
    may have fewer rows. A column block counts by the sum of its scores (Park et al., AAAI 2023: balanced column-wise
    block pruning).
    """

    rows: int
    columns: int

    def __str__(self) -> str:
        return f"colblock:{self.rows}x{self.columns}"

    def obstacle(self, shape: tuple[int, ...]) -> str | None:
        if shape[-1] % self.columns:
            return f"its {shape[-1]} inputs are no multiple of {self.columns}"
        return None

    def select(self, score: Tensor, sparsity: float, compare: Compare = "tensor") -> Tensor:
        blocks = self.blocks(score)
        kept = select_largest(blocks, kept_count(blocks.shape[-1], sparsity))
        return self.spread(kept, score.shape[0])

    def violations(self, mask: Tensor) -> int:
        """Blocks that are kept in part, and tiles that keep fewer blocks than the fullest one."""
        blocks, sizes = self.blocks(mask.float()), self.blocks(torch.ones_like(mask, dtype=torch.float32))
        kept = (blocks > 0).sum(-1)
        partial = torch.count_nonzero((blocks > 0) & (blocks < sizes))
        return int(partial + torch.count_nonzero(kept < kept.max()))

    def blocks(self, values: Tensor) -> Tensor:
        """(out, in) -> the sum of every block, (tiles, in / columns)."""
        reason = self.obstacle(tuple(values.shape))
        if reason:
            raise CrepeError(f"pattern {self} does not fit a tensor of shape {tuple(values.shape)}: {reason}")
        narrow = values.reshape(values.shape[0], -1, self.columns).sum(-1)
        padded = torch.nn.functional.pad(narrow, (0, 0, 0, -len(narrow) % self.rows))
        return padded.reshape(-1, self.rows, narrow.shape[-1]).sum(1)

    def spread(self, blocks: Tensor, outputs: int) -> Tensor:
        """One value for each block, (tiles, in / columns) -> one for each weight, (outputs, in)."""
        return blocks.repeat_interleave(self.rows, 0)[:outputs].repeat_interleave(self.columns, 1)


def parse_colblock(text: str) -> ColBlock:
    """`colblock:RxC` with R and C at least 1.

    Raises:
        UsageError: anything else.
    """
    found = re.fullmatch(r"colblock:([1-9]\d*)x([1-9]\d*)", text.strip())
    if not found:
        raise UsageError(
            f"impossible pattern {text!r}: use colblock:RxC for R rows and C columns, such as colblock:64x8"
        )
    return ColBlock(int(found[1]), int(found[2]))
