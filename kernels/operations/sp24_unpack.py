"""2:4 weights to dense ones: `crepe::sp24_unpack(values, meta) -> weight`."""

from __future__ import annotations

import torch
from torch import Tensor

from crepe.kernels.dispatch import OPERATIONS, Backend, Operation, always, interpreting
from crepe.kernels.operations.tensors import aligned, custom_op, device_of, kernel_obstacle
from crepe.kernels.reference import sp24

# The kernels count pairs of kept values in 32 bits.
MOST_VALUES = 1 << 32


def layout_obstacle(values: Tensor, meta: Tensor) -> str | None:
    """Why the kernels cannot read this weight, None where they can: any width that the layout can hold.

    Rows of 4 n words are read 16 bytes at once; where the words of a row are no multiple of four, the compiler knows
    it from the constants and reads less at once.
    """
    outputs, inputs = len(values), 2 * values.shape[-1]
    if inputs % sp24.INPUTS:
        return f"the weight has {inputs} inputs: it takes multiples of {sp24.INPUTS}"
    if values.numel() == 0:
        return "the weight is empty"
    if values.numel() >= MOST_VALUES:
        return f"the weight keeps {values.numel()} values: it takes less than {MOST_VALUES}"
    if meta.dtype != torch.int32 or tuple(meta.shape) != (outputs, inputs // sp24.INPUTS):
        return f"meta is {tuple(meta.shape)} of {meta.dtype}: {tuple(values.shape)} values do not belong to it"
    return None


def unpack_obstacle(values: Tensor, meta: Tensor) -> str | None:
    return kernel_obstacle(values, meta) or layout_obstacle(values, meta)


def by_triton(values: Tensor, meta: Tensor) -> Tensor:
    from crepe.kernels.triton.sp24_unpack import unpack

    with device_of(values):
        return unpack(aligned(values), aligned(meta), interpreting())


OPERATION = OPERATIONS.add(
    "sp24_unpack",
    Operation("sp24_unpack", (Backend("triton", by_triton, unpack_obstacle), Backend("torch", sp24.unpack, always))),
)


@custom_op("sp24_unpack")
def sp24_unpack(values: Tensor, meta: Tensor) -> Tensor:
    """values: (out, in / 2), meta: (out, in / 32) int32 -> (out, in) of the values' dtype."""
    result: Tensor = OPERATION.run(values, meta)
    return result


@sp24_unpack.register_fake
def _shape(values: Tensor, meta: Tensor) -> Tensor:
    return values.new_empty(values.shape[0], 2 * values.shape[1])
