"""The mask of N:M: score and selection in one read of the weight."""

from __future__ import annotations

import torch
from torch import Tensor

from crepe.kernels.dispatch import OPERATIONS, Backend, Operation, always
from crepe.kernels.operations.scored import score_obstacle
from crepe.kernels.operations.tensors import custom_op, device_of
from crepe.kernels.reference import selection

WIDTHS = (4, 8)


def _obstacle(
    values: Tensor, n: int, m: int, norm: Tensor | None, row: Tensor | None, column: Tensor | None
) -> str | None:
    reason = score_obstacle(values, norm, row, column)
    if reason:
        return reason
    if m not in WIDTHS or not 0 < n < m:
        return f"it selects N of 4 or of 8, not {n} of {m}"
    return f"its {values.shape[1]} inputs are no multiple of {m}" if values.shape[1] % m else None


def _triton(values: Tensor, n: int, m: int, norm: Tensor | None, row: Tensor | None, column: Tensor | None) -> Tensor:
    from crepe.kernels.triton.n_of_m import select_n_of_m as run

    with device_of(values):
        return run(values, n, m, norm, row, column)


OPERATION = OPERATIONS.add(
    "select_n_of_m",
    Operation(
        "select_n_of_m",
        (Backend("triton", _triton, _obstacle), Backend("torch", selection.select_n_of_m, always)),
    ),
)


@custom_op("select_n_of_m")
def select_n_of_m(
    values: Tensor, n: int, m: int, norm: Tensor | None, row: Tensor | None, column: Tensor | None
) -> Tensor:
    """See `crepe.kernels.reference.selection.select_n_of_m`."""
    found: Tensor = OPERATION.run(values, n, m, norm, row, column)
    return found


@select_n_of_m.register_fake
def _fake(values: Tensor, n: int, m: int, norm: Tensor | None, row: Tensor | None, column: Tensor | None) -> Tensor:
    return values.new_empty(values.shape, dtype=torch.bool)
