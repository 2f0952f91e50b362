"""A linear layer with 2:4 weights: `crepe::sp24_linear(x, values, meta, bias) -> x @ weight^T + bias`.

The number of tokens decides. One to three: a matrix-vector product. A small batch: the sparse tensor cores, or
unpacking on the way to the dense ones, both reading 9/16 of the bytes. More: a dense product takes the unpacked weight.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from crepe.kernels.dispatch import OPERATIONS, Backend, Operation, always, interpreting
from crepe.kernels.operations.sp24_unpack import by_triton, layout_obstacle, unpack_obstacle
from crepe.kernels.operations.tensors import custom_op, kernel_obstacle, launched, tokens_of
from crepe.kernels.reference import sp24

# More tokens at once need more registers than a thread has.
MOST_MATVEC_TOKENS = 3
# On an H200 the sparse tensor cores are faster than unpacking on the way to the dense ones up to 32 tokens, and at 64
# slower for three shapes of four; unpacking once is faster than that way at 96.
MOST_MMA_TOKENS = 32
MOST_MATMUL_TOKENS = 64


def _obstacle(x: Tensor, values: Tensor, meta: Tensor, bias: Tensor | None) -> str | None:
    """Why no kernel can run, None where the general ones can."""
    reason = kernel_obstacle(values, x, meta, bias) or layout_obstacle(values, meta)
    if reason:
        return reason
    if x.dtype != values.dtype:
        return f"x is {x.dtype} and the weights are {values.dtype}"
    if x.shape[-1] != 2 * values.shape[1]:
        return f"x has {x.shape[-1]} inputs and the weights {2 * values.shape[1]}"
    if bias is not None and tuple(bias.shape) != (len(values),):
        return f"the bias is {tuple(bias.shape)} for {len(values)} outputs"
    if bias is not None and bias.dtype != values.dtype:
        return f"the bias is {bias.dtype} and the weights are {values.dtype}"
    return None if x.numel() else "x is empty"


def _matvec_obstacle(x: Tensor, values: Tensor, meta: Tensor, bias: Tensor | None) -> str | None:
    tokens = tokens_of(x)
    if tokens > MOST_MATVEC_TOKENS:
        return f"x has {tokens} tokens: it takes 1 to {MOST_MATVEC_TOKENS}"
    return _obstacle(x, values, meta, bias)


def _matvec(x: Tensor, values: Tensor, meta: Tensor, bias: Tensor | None) -> Tensor:
    from crepe.kernels.triton.sp24_matvec import matvec

    return launched(partial(matvec, interpreted=interpreting()), x, values, meta, bias=bias)


def _matmul(x: Tensor, values: Tensor, meta: Tensor, bias: Tensor | None) -> Tensor:
    from crepe.kernels.triton.sp24_matmul import matmul

    return launched(partial(matmul, interpreted=interpreting()), x, values, meta, bias=bias)


def _mma(x: Tensor, values: Tensor, meta: Tensor, bias: Tensor | None) -> Tensor:
    from crepe.kernels.triton.sp24_mma import mma

    return launched(partial(mma, interpreted=interpreting()), x, values, meta, bias=bias)


def _mma_suits(x: Tensor, *others: Tensor | None) -> bool:
    return tokens_of(x) <= MOST_MMA_TOKENS


def _matmul_suits(x: Tensor, *others: Tensor | None) -> bool:
    return tokens_of(x) <= MOST_MATMUL_TOKENS


def _unpack_obstacle(x: Tensor, values: Tensor, meta: Tensor, bias: Tensor | None) -> str | None:
    return unpack_obstacle(values, meta)


def _unpack(x: Tensor, values: Tensor, meta: Tensor, bias: Tensor | None) -> Tensor:
    return torch.nn.functional.linear(x, by_triton(values, meta), bias)


OPERATION = OPERATIONS.add(
    "sp24_linear",
    Operation(
        "sp24_linear",
        (
            Backend("matvec", _matvec, _matvec_obstacle),
            Backend("mma", _mma, _obstacle, _mma_suits),
            Backend("matmul", _matmul, _obstacle, _matmul_suits),
            Backend("unpack", _unpack, _unpack_obstacle),
            Backend("torch", sp24.linear, always),
        ),
    ),
)


@custom_op("sp24_linear")
def sp24_linear(x: Tensor, values: Tensor, meta: Tensor, bias: Tensor | None = None) -> Tensor:
    """x: (..., in), values: (out, in / 2), meta: (out, in / 32) int32, bias: (out,) -> (..., out). Inference only."""
    result: Tensor = OPERATION.run(x, values, meta, bias)
    return result


@sp24_linear.register_fake
def _shape(x: Tensor, values: Tensor, meta: Tensor, bias: Tensor | None = None) -> Tensor:
    return x.new_empty(*x.shape[:-1], values.shape[0])
