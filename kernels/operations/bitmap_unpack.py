"""Unstructured weights from bits and kept values."""

from __future__ import annotations

import torch
from torch import Tensor

from crepe.kernels.dispatch import OPERATIONS, Backend, Operation, always, triton_obstacle
from crepe.kernels.operations.scored import DTYPES
from crepe.kernels.operations.tensors import custom_op, device_of
from crepe.kernels.reference import bitmap


def _obstacle(values: Tensor, bits: Tensor, shape: list[int]) -> str | None:
    reason = triton_obstacle(bits)
    if reason:
        return reason
    if values.dtype not in DTYPES:
        return f"the values are {values.dtype}"
    if values.device != bits.device:
        return f"the values are on {values.device} and the bits on {bits.device}"
    if bits.numel() != -(-torch.Size(shape).numel() // 8):
        return f"{bits.numel()} bytes are no bits for a weight of shape {tuple(shape)}"
    return None if values.is_contiguous() and bits.is_contiguous() else "the values or bits are not contiguous"


def _triton(values: Tensor, bits: Tensor, shape: list[int]) -> Tensor:
    from crepe.kernels.triton.bitmap import unpack

    with device_of(values):
        return unpack(values, bits, tuple(shape))


def _torch(values: Tensor, bits: Tensor, shape: list[int]) -> Tensor:
    return bitmap.unpack(values, bits, tuple(shape))


OPERATION = OPERATIONS.add(
    "bitmap_unpack",
    Operation("bitmap_unpack", (Backend("triton", _triton, _obstacle), Backend("torch", _torch, always))),
)


@custom_op("bitmap_unpack")
def bitmap_unpack(values: Tensor, bits: Tensor, shape: list[int]) -> Tensor:
    """See `crepe.kernels.reference.bitmap.unpack`."""
    found: Tensor = OPERATION.run(values, bits, shape)
    return found


@bitmap_unpack.register_fake
def _fake(values: Tensor, bits: Tensor, shape: list[int]) -> Tensor:
    return values.new_empty(shape)
