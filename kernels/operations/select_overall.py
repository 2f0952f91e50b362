"""The best of a whole matrix, exactly, without storing its scores."""

from __future__ import annotations

import torch
from torch import Tensor

from crepe.kernels.dispatch import OPERATIONS, Backend, Operation, always
from crepe.kernels.operations.scored import score_obstacle
from crepe.kernels.operations.tensors import custom_op, device_of
from crepe.kernels.reference import selection


def _obstacle(values: Tensor, keep: int, norm: Tensor | None, row: Tensor | None, column: Tensor | None) -> str | None:
    return score_obstacle(values, norm, row, column)


def _triton(values: Tensor, keep: int, norm: Tensor | None, row: Tensor | None, column: Tensor | None) -> Tensor:
    from crepe.kernels.triton.global_threshold import select_overall as run

    with device_of(values):
        return run(values, keep, norm, row, column)


OPERATION = OPERATIONS.add(
    "select_overall",
    Operation(
        "select_overall",
        (Backend("triton", _triton, _obstacle), Backend("torch", selection.select_overall, always)),
    ),
)


@custom_op("select_overall")
def select_overall(values: Tensor, keep: int, norm: Tensor | None, row: Tensor | None, column: Tensor | None) -> Tensor:
    """See `crepe.kernels.reference.selection.select_overall`."""
    found: Tensor = OPERATION.run(values, keep, norm, row, column)
    return found


@select_overall.register_fake
def _fake(values: Tensor, keep: int, norm: Tensor | None, row: Tensor | None, column: Tensor | None) -> Tensor:
    return values.new_empty(values.shape, dtype=torch.bool)
