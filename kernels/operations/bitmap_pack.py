"""Unstructured weights into bits and kept values.

The number of kept weights is an argument: selection is exact, so that callers know it, and then no size depends on
values and nothing has to wait for the device.
"""

from __future__ import annotations

import torch
from torch import Tensor

from crepe.errors import CrepeError
from crepe.kernels.dispatch import OPERATIONS, Backend, Operation, always
from crepe.kernels.operations.scored import weight_obstacle
from crepe.kernels.operations.tensors import custom_op, device_of
from crepe.kernels.reference import bitmap


def _obstacle(weight: Tensor, kept: Tensor, count: int) -> str | None:
    reason = weight_obstacle(weight)
    if not reason and (kept.shape != weight.shape or kept.dtype != torch.bool or not kept.is_contiguous()):
        return f"the mask is {tuple(kept.shape)} of {kept.dtype}, or not contiguous"
    if not reason and kept.device != weight.device:
        return f"the mask is on {kept.device} and the weight on {weight.device}"
    return reason


def _triton(weight: Tensor, kept: Tensor, count: int) -> tuple[Tensor, Tensor]:
    from crepe.kernels.triton.bitmap import pack

    with device_of(weight):
        return pack(weight, kept, count)


def _torch(weight: Tensor, kept: Tensor, count: int) -> tuple[Tensor, Tensor]:
    values, bits = bitmap.pack(weight, kept)
    if len(values) != count:
        raise CrepeError(f"the mask keeps {len(values)} weights and not {count}: pass the number that it keeps")
    return values, bits


OPERATION = OPERATIONS.add(
    "bitmap_pack",
    Operation("bitmap_pack", (Backend("triton", _triton, _obstacle), Backend("torch", _torch, always))),
)


@custom_op("bitmap_pack")
def bitmap_pack(weight: Tensor, kept: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """See `crepe.kernels.reference.bitmap.pack`."""
    values, bits = OPERATION.run(weight, kept, count)
    return values, bits


@bitmap_pack.register_fake
def _fake(weight: Tensor, kept: Tensor, count: int) -> tuple[Tensor, Tensor]:
    return weight.new_empty(count), weight.new_empty((weight.numel() + 7) // 8, dtype=torch.uint8)
