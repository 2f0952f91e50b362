"""Sums of |W| over rows and over columns, from one read of the weight."""

from __future__ import annotations

import torch
from torch import Tensor

from crepe.kernels.dispatch import OPERATIONS, Backend, Operation, always
from crepe.kernels.operations.scored import weight_obstacle
from crepe.kernels.operations.tensors import custom_op, device_of
from crepe.kernels.reference import sums


def _triton(weight: Tensor) -> tuple[Tensor, Tensor]:
    from crepe.kernels.triton.sums import absolute_sums as run

    with device_of(weight):
        return run(weight)


OPERATION = OPERATIONS.add(
    "absolute_sums",
    Operation(
        "absolute_sums", (Backend("triton", _triton, weight_obstacle), Backend("torch", sums.absolute_sums, always))
    ),
)


@custom_op("absolute_sums")
def absolute_sums(weight: Tensor) -> tuple[Tensor, Tensor]:
    """See `crepe.kernels.reference.sums.absolute_sums`."""
    rows, columns = OPERATION.run(weight)
    return rows, columns


@absolute_sums.register_fake
def _fake(weight: Tensor) -> tuple[Tensor, Tensor]:
    outputs, inputs = weight.shape
    return weight.new_empty(outputs, dtype=torch.float32), weight.new_empty(inputs, dtype=torch.float32)
