"""2:4 in one read of the weight: score, selection and packing."""

from __future__ import annotations

import torch
from torch import Tensor

from crepe.kernels.dispatch import OPERATIONS, Backend, Operation, always
from crepe.kernels.operations.scored import score_obstacle
from crepe.kernels.operations.tensors import custom_op, device_of
from crepe.kernels.reference import selection, sp24


def _obstacle(values: Tensor, norm: Tensor | None, row: Tensor | None, column: Tensor | None) -> str | None:
    return score_obstacle(values, norm, row, column) or sp24.obstacle(tuple(values.shape))


def _triton(values: Tensor, norm: Tensor | None, row: Tensor | None, column: Tensor | None) -> tuple[Tensor, Tensor]:
    from crepe.kernels.triton.prune_pack import prune_pack as run

    with device_of(values):
        return run(values, norm, row, column)


OPERATION = OPERATIONS.add(
    "prune_pack",
    Operation("prune_pack", (Backend("triton", _triton, _obstacle), Backend("torch", selection.prune_pack, always))),
)


@custom_op("prune_pack")
def prune_pack(values: Tensor, norm: Tensor | None, row: Tensor | None, column: Tensor | None) -> tuple[Tensor, Tensor]:
    """See `crepe.kernels.reference.selection.prune_pack`."""
    packed, meta = OPERATION.run(values, norm, row, column)
    return packed, meta


@prune_pack.register_fake
def _fake(values: Tensor, norm: Tensor | None, row: Tensor | None, column: Tensor | None) -> tuple[Tensor, Tensor]:
    outputs, inputs = values.shape
    meta = values.new_empty(outputs, inputs // sp24.INPUTS, dtype=torch.int32)
    return values.new_empty(outputs, inputs // 2), meta
