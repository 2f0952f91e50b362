"""2:4 weights times a small batch of tokens: weights are unpacked in registers on their way to the tensor cores."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from crepe.kernels.triton.configs import HOPPER, Config, Device, device_of, find, planned
from crepe.kernels.triton.groups import expand, read
from crepe.kernels.triton.launch import cdiv, linear
from crepe.kernels.triton.tiles import multiplied, store


@triton.jit(do_not_specialize=["tokens"])
def matmul_kernel(
    out,
    x,
    values,
    meta,
    bias,
    tokens,
    OUTPUTS: tl.constexpr,
    INPUTS: tl.constexpr,
    BN: tl.constexpr,
    BM: tl.constexpr,
    WORDS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    BF16: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """out: (tokens, OUTPUTS). x: (tokens, INPUTS). values: (OUTPUTS, INPUTS / 4) int32. meta: (OUTPUTS, INPUTS / 32)
    int32. One program computes BN outputs of BM tokens and unpacks WORDS words of each row at a time.

    The weight is the left operand: the tensor cores want 64 rows on the left and take any multiple of 8 on the right.
    """
    LENGTH: tl.constexpr = INPUTS // 32
    MASKED: tl.constexpr = LENGTH % WORDS != 0
    FLOAT: tl.constexpr = tl.bfloat16 if BF16 else tl.float16
    row = tl.program_id(0) * BN + tl.arange(0, BN)
    at = tl.minimum(row, OUTPUTS - 1)
    # In 64 bits: many tokens of a wide layer are more than 2^31 numbers.
    token = tl.program_id(1).to(tl.int64) * BM + tl.arange(0, BM)
    known = tl.minimum(token, tokens - 1)
    total = tl.zeros((BN, BM), tl.float32)
    for start in range(0, LENGTH, WORDS):
        word = start + tl.arange(0, WORDS)
        inside = (word < LENGTH)[None, :]
        column = 4 * start + tl.arange(0, 4 * WORDS)
        codes = read(meta + at[:, None] * LENGTH + word[None, :], inside, MASKED)
        for group in tl.static_range(8):
            place = group * LENGTH + word
            pair = read(values + at[:, None] * (INPUTS // 4) + place[None, :], inside, MASKED)
            lower, upper = expand(pair, codes, group, INTERPRETED)
            # (BN, WORDS, pair of the group, half of the pair) is the order of the inputs.
            even = tl.join(lower.to(tl.int16), upper.to(tl.int16))
            odd = tl.join((lower >> 16).to(tl.int16), (upper >> 16).to(tl.int16))
            weight = tl.reshape(tl.join(even, odd), (BN, 4 * WORDS)).to(FLOAT, bitcast=True)
            spot = x + known[None, :] * INPUTS + (4 * group * LENGTH + column)[:, None]
            part = read(spot, (column < 4 * LENGTH)[:, None], MASKED)
            total = multiplied(weight, part, total, INTERPRETED)
    store(out, total, bias, row, token, tokens, OUTPUTS, HAS_BIAS)


@planned
def plan(shape: tuple[int, int, int], dtype: torch.dtype, device: Device = HOPPER) -> tuple[Mapping[str, Any], Config]:
    """The kernel's constants and launch for (tokens, outputs, inputs)."""
    tokens, outputs, inputs = shape
    config = find("sp24_matmul", device, tokens, outputs)
    constants: dict[str, Any] = {"OUTPUTS": outputs, "INPUTS": inputs, **config.tiles}
    return constants | {"BF16": dtype == torch.bfloat16}, config


def matmul(x: Tensor, values: Tensor, meta: Tensor, bias: Tensor | None, interpreted: bool) -> Tensor:
    """x: (tokens, inputs) -> (tokens, outputs). All contiguous and aligned to 16 bytes."""
    shape = (x.shape[0], values.shape[0], x.shape[1])
    found = plan(shape, x.dtype, device_of(x.device))
    grid = (cdiv(shape[1], found.constants["BN"]), cdiv(shape[0], found.constants["BM"]))
    operands = (x, values.view(torch.int32), meta)
    out = x.new_empty(shape[:2])
    return linear(matmul_kernel, grid, found, out, operands, bias, shape[0], INTERPRETED=interpreted)
