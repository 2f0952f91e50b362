"""The best of every row, exactly: score and selection in one read of the weight."""

from __future__ import annotations

import torch
from torch import Tensor

from crepe.kernels.dispatch import OPERATIONS, Backend, Operation, always
from crepe.kernels.operations.scored import score_obstacle
from crepe.kernels.operations.tensors import custom_op, device_of
from crepe.kernels.reference import selection

# Longest row that one program holds in registers: 1024 threads with 32 keys each.
LONGEST = 32768


def _obstacle(values: Tensor, keep: int, norm: Tensor | None, row: Tensor | None, column: Tensor | None) -> str | None:
    reason = score_obstacle(values, norm, row, column)
    if not reason and values.shape[1] > LONGEST:
        return f"its rows have {values.shape[1]} inputs and a program holds {LONGEST}"
    return reason


def _triton(values: Tensor, keep: int, norm: Tensor | None, row: Tensor | None, column: Tensor | None) -> Tensor:
    from crepe.kernels.triton.row_threshold import select_by_row as run

    with device_of(values):
        return run(values, keep, norm, row, column)


OPERATION = OPERATIONS.add(
    "select_by_row",
    Operation(
        "select_by_row",
        (Backend("triton", _triton, _obstacle), Backend("torch", selection.select_by_row, always)),
    ),
)


@custom_op("select_by_row")
def select_by_row(values: Tensor, keep: int, norm: Tensor | None, row: Tensor | None, column: Tensor | None) -> Tensor:
    """See `crepe.kernels.reference.selection.select_by_row`."""
    found: Tensor = OPERATION.run(values, keep, norm, row, column)
    # Sorting follows the strides of the values; torch has to know those of a result before it is there.
    return found.contiguous()


@select_by_row.register_fake
def _fake(values: Tensor, keep: int, norm: Tensor | None, row: Tensor | None, column: Tensor | None) -> Tensor:
    return values.new_empty(values.shape, dtype=torch.bool)
