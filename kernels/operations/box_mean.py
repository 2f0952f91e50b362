"""The mean of |W| in the window around every weight."""

from __future__ import annotations

import torch
from torch import Tensor

from crepe.kernels.dispatch import OPERATIONS, Backend, Operation, always
from crepe.kernels.operations.scored import weight_obstacle
from crepe.kernels.operations.tensors import custom_op, device_of
from crepe.kernels.reference import sums

# Largest window: every entry is a load of its own, and the loop over them is unrolled.
LARGEST = 9


def _obstacle(weight: Tensor, kernel: int) -> str | None:
    reason = weight_obstacle(weight)
    if not reason and (kernel > LARGEST or kernel % 2 == 0):
        return f"a window of {kernel} x {kernel} is not odd or larger than {LARGEST} x {LARGEST}"
    return reason


def _triton(weight: Tensor, kernel: int) -> Tensor:
    from crepe.kernels.triton.box_mean import box_mean as run

    with device_of(weight):
        return run(weight, kernel)


OPERATION = OPERATIONS.add(
    "box_mean",
    Operation("box_mean", (Backend("triton", _triton, _obstacle), Backend("torch", sums.box_mean, always))),
)


@custom_op("box_mean")
def box_mean(weight: Tensor, kernel: int) -> Tensor:
    """See `crepe.kernels.reference.sums.box_mean`."""
    found: Tensor = OPERATION.run(weight, kernel)
    return found


@box_mean.register_fake
def _fake(weight: Tensor, kernel: int) -> Tensor:
    return weight.new_empty(weight.shape, dtype=torch.float32)
