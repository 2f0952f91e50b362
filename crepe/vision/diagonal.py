"""Depth-wise convolution as products of diagonal blocks, and as products over the kept columns only.

In the diagonal-wise refactorisation (Qin et al. 2018) the weight vectors of a group of channels stand on the diagonal
of one matrix, whose product with the unfolded images is the convolution. Each of its columns holds one weight, so a
pruned tap is a column that can be left out (DEPrune, NeurIPS 2024). This is the reference for kernels, not a fast path.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Window:
    """How a convolution slides: each (height, width)."""

    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)


@dataclass(frozen=True, eq=False)
class PackedTaps:
    """Kept taps of a depth-wise convolution, in groups of `group` channels.

    values: (groups, K'); columns: (groups, K') int32, channel in the group * taps + tap. K' is the count of the fullest
    group; a group with fewer is filled with zeros in column 0. kernel: (kh, kw).
    """

    values: Tensor
    columns: Tensor
    channels: int
    group: int
    kernel: tuple[int, int]


def diagonal_blocks(weight: Tensor, group: int = 32) -> Tensor:
    """(channels, 1, kh, kw) -> (groups, group, group * taps): row c holds its taps in columns c * taps and on."""
    rows = _padded(weight.flatten(1), group).reshape(-1, group, 1, weight[0].numel())
    place = torch.eye(group, dtype=weight.dtype, device=weight.device)[:, :, None]
    return (rows * place).flatten(2)


def depthwise_by_blocks(images: Tensor, weight: Tensor, group: int = 32, window: Window | None = None) -> Tensor:
    """The depth-wise convolution as one product for each group. images: (batch, channels, h, w)."""
    kernel = (weight.shape[2], weight.shape[3])
    unfolded = _unfolded(images, kernel, group, window or Window())
    product = diagonal_blocks(weight, group) @ unfolded
    return _folded(product, images, kernel, window or Window())


def pack_taps(weight: Tensor, kept: Tensor, group: int = 32) -> PackedTaps:
    """weight, kept (bool): (channels, 1, kh, kw)."""
    values = _padded(weight.flatten(1), group).reshape(-1, group * weight[0].numel())
    mask = _padded(kept.flatten(1), group).reshape(values.shape)
    counts = mask.sum(1)
    # The kept columns of each group first, in their order.
    columns = mask.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, : int(counts.max())]
    filled = torch.arange(columns.shape[1], device=counts.device) < counts[:, None]
    return PackedTaps(
        torch.where(filled, values.gather(1, columns), 0.0),
        torch.where(filled, columns, 0).int(),
        len(weight),
        group,
        (weight.shape[2], weight.shape[3]),
    )


def packed_depthwise(images: Tensor, packed: PackedTaps, window: Window | None = None) -> Tensor:
    """The depth-wise convolution over kept columns only: for each group A B with A (group, K'), one value in each
    column, and B the rows of the unfolded images that belong to the columns."""
    unfolded = _unfolded(images, packed.kernel, packed.group, window or Window())
    columns = packed.columns.long()
    taps = packed.kernel[0] * packed.kernel[1]
    left = torch.zeros(len(columns), packed.group, columns.shape[1], dtype=packed.values.dtype)
    left.scatter_(1, (columns // taps)[:, None], packed.values[:, None])
    right = unfolded.gather(2, columns[None, :, :, None].expand(len(images), -1, -1, unfolded.shape[-1]))
    return _folded(left @ right, images, packed.kernel, window or Window())


def _padded(rows: Tensor, group: int) -> Tensor:
    """(channels, n) -> (a multiple of group, n), zeros below."""
    return nn.functional.pad(rows, (0, 0, 0, -len(rows) % group))


def _unfolded(images: Tensor, kernel: tuple[int, int], group: int, window: Window) -> Tensor:
    """im2col: (batch, channels, h, w) -> (batch, groups, group * taps, positions)."""
    columns = nn.functional.unfold(images, kernel, window.dilation, window.padding, window.stride)
    block = group * kernel[0] * kernel[1]
    padded = nn.functional.pad(columns, (0, 0, 0, -columns.shape[1] % block))
    return padded.reshape(len(images), -1, block, columns.shape[2])


def _folded(product: Tensor, images: Tensor, kernel: tuple[int, int], window: Window) -> Tensor:
    """(batch, groups, group, positions) -> (batch, channels, h', w')."""
    sizes = [
        (images.shape[2 + axis] + 2 * window.padding[axis] - window.dilation[axis] * (kernel[axis] - 1) - 1)
        // window.stride[axis]
        + 1
        for axis in (0, 1)
    ]
    return product.flatten(1, 2)[:, : images.shape[1]].reshape(len(images), -1, *sizes)
