"""Unstructured weights into bits and kept values."""

from __future__ import annotations

import torch
from torch import Tensor

from crepe.kernels.dispatch import OPERATIONS, Backend, Operation, always
from crepe.kernels.operations.scored import weight_obstacle
from crepe.kernels.reference import bitmap


def _obstacle(weight: Tensor, kept: Tensor) -> str | None:
    reason = weight_obstacle(weight)
    if not reason and (kept.shape != weight.shape or kept.dtype != torch.bool or not kept.is_contiguous()):
        return f"the mask is {tuple(kept.shape)} of {kept.dtype}, or not contiguous"
    return reason


def _triton(weight: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
    from crepe.kernels.triton.bitmap import pack

    return pack(weight, kept)


OPERATION = OPERATIONS.add(
    "bitmap_pack",
    Operation("bitmap_pack", (Backend("triton", _triton, _obstacle), Backend("torch", bitmap.pack, always))),
)


@torch.library.custom_op("crepe::bitmap_pack", mutates_args=())
def bitmap_pack(weight: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
    """See `crepe.kernels.reference.bitmap.pack`."""
    values, bits = OPERATION.run(weight, kept)
    return values, bits


@bitmap_pack.register_fake
def _fake(weight: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
    count = torch.library.get_ctx().new_dynamic_size()
    return weight.new_empty(count), weight.new_empty((weight.numel() + 7) // 8, dtype=torch.uint8)
