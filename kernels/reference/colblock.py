"""The layout of balanced column blocks: for every tile of rows the blocks it keeps, and their weights side by side.

values: (out, kept blocks * columns). blocks: (tiles, kept blocks) int32, rising in every row.
"""

from __future__ import annotations

import torch
from torch import Tensor

from crepe.errors import CrepeError
from crepe.masks import ColBlock


def pack(weight: Tensor, kept: Tensor, pattern: ColBlock) -> tuple[Tensor, Tensor]:
    """weight, kept: (out, in) -> values (out, kept inputs) of the weight's dtype, blocks (tiles, kept blocks) int32.

    Raises:
        CrepeError: the shape does not fit, or the mask breaks the pattern.
    """
    broken = pattern.violations(kept)
    if broken:
        raise CrepeError(f"the mask breaks pattern {pattern} in {broken} places: select it with that pattern")
    alive = pattern.blocks(kept.float()) > 0
    blocks = alive.nonzero()[:, 1].reshape(len(alive), -1).int()
    columns = _columns(blocks, pattern, len(weight))
    return weight.gather(1, columns) + 0.0, blocks


def unpack(values: Tensor, blocks: Tensor, pattern: ColBlock, inputs: int) -> Tensor:
    """The inverse of `pack`: (out, inputs)."""
    dense = torch.zeros(len(values), inputs, dtype=values.dtype, device=values.device)
    return dense.scatter_(1, _columns(blocks, pattern, len(values)), values)


def check(values: Tensor, blocks: Tensor, pattern: ColBlock, shape: tuple[int, int]) -> None:
    """Raises CrepeError where the two tensors are not a weight of `shape` (out, in) in this pattern."""
    reason = pattern.obstacle(shape)
    if reason:
        raise CrepeError(f"a weight of shape {shape} cannot have pattern {pattern}: {reason}")
    out, inputs = shape
    tiles, available = -(-out // pattern.rows), inputs // pattern.columns
    if blocks.dim() != 2 or len(blocks) != tiles or blocks.dtype != torch.int32:
        raise CrepeError(f"blocks is {tuple(blocks.shape)} of {blocks.dtype}: expected {tiles} rows of torch.int32")
    expected = (out, blocks.shape[1] * pattern.columns)
    if tuple(values.shape) != expected:
        raise CrepeError(f"values has shape {tuple(values.shape)}: expected {expected}")
    rising = bool((blocks[:, 1:] > blocks[:, :-1]).all())
    inside = bool(((blocks >= 0) & (blocks < available)).all())
    if not rising or not inside:
        raise CrepeError(f"blocks must rise within 0..{available - 1} in every tile: the file is damaged")


def linear(inputs: Tensor, values: Tensor, blocks: Tensor, pattern: ColBlock, bias: Tensor | None) -> Tensor:
    """inputs (..., in) @ weight^T + bias with the weight unpacked: what the kernels compute without unpacking it."""
    return torch.nn.functional.linear(inputs, unpack(values, blocks, pattern, inputs.shape[-1]), bias)


def _columns(blocks: Tensor, pattern: ColBlock, outputs: int) -> Tensor:
    """The input of every kept weight, (outputs, kept inputs) int64."""
    inside = torch.arange(pattern.columns, device=blocks.device)
    columns = (blocks.long()[..., None] * pattern.columns + inside).flatten(1)
    return columns.repeat_interleave(pattern.rows, 0)[:outputs]
