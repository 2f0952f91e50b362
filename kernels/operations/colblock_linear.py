"""A linear layer with weights in balanced column blocks: (x, values, blocks, rows, columns, bias) ->
x @ weight^T + bias."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from crepe.kernels.dispatch import OPERATIONS, Backend, Operation, always, interpreting
from crepe.kernels.operations.tensors import custom_op, kernel_obstacle, launched, tokens_of
from crepe.kernels.reference import colblock
from crepe.masks import ColBlock

MOST_MATVEC_TOKENS = 3
# On an H200 exchanging the activations of 2048 tokens pays for blocks of 8 columns and not for 16. From how many tokens
# on is not measured.
MOST_PREFILL_COLUMNS = 8
LEAST_PREFILL_TOKENS = 512
# Inputs of a step of that kernel.
_PREFILL_STEP = 32
# A tensor core takes 16 rows at least; a block is read 16 bytes at a time, and a step of `matmul` holds 64 inputs.
LEAST_ROWS = 16
COLUMNS = (8, 16, 32, 64)
# The kernels count kept values in 32 bits.
MOST_VALUES = 1 << 31


def _obstacle(
    x: Tensor, values: Tensor, blocks: Tensor, rows: int, columns: int, bias: Tensor | None = None
) -> str | None:
    """Why no kernel can run, None where the general one can."""
    reason = kernel_obstacle(values, x, blocks, bias) or _layout_obstacle(values, blocks, rows, columns)
    if reason:
        return reason
    if x.dtype != values.dtype:
        return f"x is {x.dtype} and the weights are {values.dtype}"
    if x.shape[-1] % columns:
        return f"x has {x.shape[-1]} inputs, no multiple of {columns}"
    if bias is not None and tuple(bias.shape) != (len(values),):
        return f"the bias is {tuple(bias.shape)} for {len(values)} outputs"
    if bias is not None and bias.dtype != values.dtype:
        return f"the bias is {bias.dtype} and the weights are {values.dtype}"
    return None if x.numel() else "x is empty"


def _layout_obstacle(values: Tensor, blocks: Tensor, rows: int, columns: int) -> str | None:
    if rows < LEAST_ROWS or rows & (rows - 1):
        return f"its tiles have {rows} rows: it takes powers of two from {LEAST_ROWS}"
    if columns not in COLUMNS:
        return f"its blocks have {columns} columns: it takes {', '.join(map(str, COLUMNS))}"
    if values.numel() == 0:
        return "no block is kept"
    if values.numel() >= MOST_VALUES:
        return f"the weight keeps {values.numel()} values: it takes less than {MOST_VALUES}"
    expected = (-(-len(values) // rows), values.shape[1] // columns)
    if blocks.dtype != torch.int32 or tuple(blocks.shape) != expected or values.shape[1] % columns:
        return f"blocks is {tuple(blocks.shape)} of {blocks.dtype}: {tuple(values.shape)} values do not belong to it"
    return None


def _matvec_obstacle(
    x: Tensor, values: Tensor, blocks: Tensor, rows: int, columns: int, bias: Tensor | None = None
) -> str | None:
    tokens = tokens_of(x)
    if tokens > MOST_MATVEC_TOKENS:
        return f"x has {tokens} tokens: it takes 1 to {MOST_MATVEC_TOKENS}"
    return _obstacle(x, values, blocks, rows, columns, bias)


def _matvec(x: Tensor, values: Tensor, blocks: Tensor, rows: int, columns: int, bias: Tensor | None = None) -> Tensor:
    from crepe.kernels.triton.colblock_matvec import matvec

    return launched(matvec, x, values, blocks, rows, columns, bias=bias)


def _matmul(x: Tensor, values: Tensor, blocks: Tensor, rows: int, columns: int, bias: Tensor | None = None) -> Tensor:
    from crepe.kernels.triton.colblock_matmul import matmul

    return launched(partial(matmul, interpreted=interpreting()), x, values, blocks, rows, columns, bias=bias)


def _prefill(x: Tensor, values: Tensor, blocks: Tensor, rows: int, columns: int, bias: Tensor | None = None) -> Tensor:
    from crepe.kernels.triton.colblock_matmul import matmul

    return launched(
        partial(matmul, interpreted=interpreting(), exchanging=True), x, values, blocks, rows, columns, bias=bias
    )


def _prefill_obstacle(
    x: Tensor, values: Tensor, blocks: Tensor, rows: int, columns: int, bias: Tensor | None = None
) -> str | None:
    if columns > _PREFILL_STEP:
        return f"its blocks have {columns} columns: it takes up to {_PREFILL_STEP}"
    return _obstacle(x, values, blocks, rows, columns, bias)


def _prefill_suits(
    x: Tensor, values: Tensor, blocks: Tensor, rows: int, columns: int, bias: Tensor | None = None
) -> bool:
    return columns <= MOST_PREFILL_COLUMNS and tokens_of(x) >= LEAST_PREFILL_TOKENS


def _reference(
    x: Tensor, values: Tensor, blocks: Tensor, rows: int, columns: int, bias: Tensor | None = None
) -> Tensor:
    return colblock.linear(x, values, blocks, ColBlock(rows, columns), bias)


OPERATION = OPERATIONS.add(
    "colblock_linear",
    Operation(
        "colblock_linear",
        (
            Backend("matvec", _matvec, _matvec_obstacle),
            Backend("prefill", _prefill, _prefill_obstacle, _prefill_suits),
            Backend("matmul", _matmul, _obstacle),
            Backend("torch", _reference, always),
        ),
    ),
)


@custom_op("colblock_linear")
def colblock_linear(
    x: Tensor, values: Tensor, blocks: Tensor, rows: int, columns: int, bias: Tensor | None = None
) -> Tensor:
    """x: (..., in), values: (out, kept inputs), blocks: (tiles, kept blocks) int32, bias: (out,) -> (..., out).
    Inference only."""
    result: Tensor = OPERATION.run(x, values, blocks, rows, columns, bias)
    return result


@colblock_linear.register_fake
def _shape(x: Tensor, values: Tensor, blocks: Tensor, rows: int, columns: int, bias: Tensor | None = None) -> Tensor:
    return x.new_empty(*x.shape[:-1], values.shape[0])
