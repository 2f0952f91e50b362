"""The layout of unstructured weights: the kept values in row-major order and one bit for every weight.

A claim about size only: at 50 % a GPU cannot expand it faster than it reads the dense weight.
"""

from __future__ import annotations

import torch
from torch import Tensor

from crepe.errors import CrepeError
from crepe.masks.mask_set import pack_bits, unpack_bits


def pack(weight: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
    """weight, kept: same shape -> values (kept,) of the weight's dtype, bits (ceil(numel / 8),) uint8.

    Bit i of byte b stands for element 8 b + i of the flattened weight.
    """
    return weight[kept] + 0.0, pack_bits(kept)


def unpack(values: Tensor, bits: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The inverse of `pack`, zero (+0.0) where nothing was kept."""
    dense = torch.zeros(shape, dtype=values.dtype, device=values.device)
    return dense.masked_scatter_(unpack_bits(bits, shape), values)


def check(values: Tensor, bits: Tensor, shape: tuple[int, ...]) -> None:
    """Raises CrepeError where the two tensors are not a weight of `shape`."""
    kept = int(torch.count_nonzero(unpack_bits(bits, shape)))
    if values.shape != (kept,):
        raise CrepeError(f"values has shape {tuple(values.shape)}: the bits keep {kept}")
    padding = -torch.Size(shape).numel() % 8
    if padding and int(bits[-1]) >> (8 - padding):
        raise CrepeError("bits are set behind the last weight: the file is damaged")
