"""Unstructured storage in the layout of `crepe.kernels.reference.bitmap`: bits of all weights, values of the kept."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from crepe.kernels.triton.launch import cdiv

TILE = 1024
WARPS = 4


@triton.jit
def bits_kernel(kept, bits, counts, total, TILE: tl.constexpr):
    """Eight weights of the mask into a byte, and how many a tile keeps."""
    places = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    flags = tl.load(kept + places, mask=places < total, other=0).to(tl.int32)
    weighted = tl.reshape(flags, (TILE // 8, 8)) << tl.arange(0, 8)[None, :]
    words = tl.program_id(0).to(tl.int64) * (TILE // 8) + tl.arange(0, TILE // 8)
    tl.store(bits + words, tl.sum(weighted, 1).to(tl.uint8), mask=words * 8 < total)
    tl.store(counts + tl.program_id(0), tl.sum(flags, 0))


@triton.jit
def pack_kernel(weight, kept, starts, values, total, count, TILE: tl.constexpr):
    places = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    flags = tl.load(kept + places, mask=places < total, other=0).to(tl.int32)
    # The addition turns -0.0 into 0.0.
    value = tl.load(weight + places, mask=places < total, other=0.0).to(tl.float32) + 0.0
    target = tl.load(starts + tl.program_id(0)) + tl.cumsum(flags, 0) - 1
    tl.store(values + target, value.to(values.dtype.element_ty), mask=(flags != 0) & (target < count))


@triton.jit
def count_kernel(bits, counts, length, TILE: tl.constexpr):
    """How many weights a tile keeps, from its bits."""
    words = tl.program_id(0).to(tl.int64) * (TILE // 8) + tl.arange(0, TILE // 8)
    byte = tl.load(bits + words, mask=words < length, other=0).to(tl.int32)
    flags = (byte[:, None] >> tl.arange(0, 8)[None, :]) & 1
    tl.store(counts + tl.program_id(0), tl.sum(tl.sum(flags, 1), 0))


@triton.jit
def unpack_kernel(values, bits, starts, weight, total, TILE: tl.constexpr):
    places = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    byte = tl.load(bits + places // 8, mask=places < total, other=0).to(tl.int32)
    flags = (byte >> (places % 8).to(tl.int32)) & 1
    source = tl.load(starts + tl.program_id(0)) + tl.cumsum(flags, 0) - 1
    value = tl.load(values + source, mask=flags != 0, other=0.0)
    tl.store(weight + places, value, mask=places < total)


def pack(weight: Tensor, kept: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """See `crepe.kernels.reference.bitmap.pack`. count: how many are kept."""
    total, flags = weight.numel(), kept.view(torch.uint8)
    bits = weight.new_empty(cdiv(total, 8), dtype=torch.uint8)
    counts = weight.new_empty(cdiv(total, TILE), dtype=torch.int32)
    bits_kernel[(len(counts),)](flags, bits, counts, total, TILE=TILE, num_warps=WARPS)
    values = weight.new_zeros(count)
    starts = counts.cumsum(0) - counts
    pack_kernel[(len(counts),)](weight, flags, starts, values, total, count, TILE=TILE, num_warps=WARPS)
    return values, bits


def unpack(values: Tensor, bits: Tensor, shape: tuple[int, ...]) -> Tensor:
    """See `crepe.kernels.reference.bitmap.unpack`."""
    weight = values.new_empty(shape)
    total = weight.numel()
    counts = values.new_empty(cdiv(total, TILE), dtype=torch.int32)
    count_kernel[(len(counts),)](bits, counts, len(bits), TILE=TILE, num_warps=WARPS)
    starts = counts.cumsum(0) - counts
    unpack_kernel[(len(counts),)](values, bits, starts, weight, total, TILE=TILE, num_warps=WARPS)
    return weight
