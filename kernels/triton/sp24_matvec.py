"""2:4 weights times one to three tokens: the activations that a pair meets are picked out, nothing is unpacked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from crepe.kernels.triton.configs import HOPPER, Config, Device, device_of, find, planned, power_of_two
from crepe.kernels.triton.groups import lower_float, pick, read, upper_float
from crepe.kernels.triton.launch import cdiv, linear


@triton.jit
def matvec_kernel(
    out,
    x,
    values,
    meta,
    bias,
    OUTPUTS: tl.constexpr,
    INPUTS: tl.constexpr,
    TOKENS: tl.constexpr,
    ROWS: tl.constexpr,
    WORDS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    BF16: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """out: (TOKENS, OUTPUTS). x: (TOKENS, INPUTS / 4) int64. values: (OUTPUTS, INPUTS / 4) int32. meta: (OUTPUTS,
    INPUTS / 32) int32. One program computes ROWS outputs and holds WORDS words of each row at a time.

    All tensors are 1-D with one layout, so that no value ever moves between threads before the last sum.
    """
    LENGTH: tl.constexpr = INPUTS // 32
    MASKED: tl.constexpr = LENGTH % WORDS != 0
    first = tl.program_id(0) * ROWS
    sums = (tl.full((WORDS,), 0.0, tl.float32),) * (ROWS * TOKENS)
    for start in range(0, LENGTH, WORDS):
        word = start + tl.arange(0, WORDS)
        inside = word < LENGTH
        codes = ()
        for row in tl.static_range(ROWS):
            at = tl.minimum(first + row, OUTPUTS - 1)
            codes = codes + (read(meta + at * LENGTH + word, inside, MASKED),)
        for group in tl.static_range(8):
            place = group * LENGTH + word
            activations = ()
            for token in tl.static_range(TOKENS):
                activations = activations + (read(x + token * (INPUTS // 4) + place, inside, MASKED),)
            added = ()
            for row in tl.static_range(ROWS):
                at = tl.minimum(first + row, OUTPUTS - 1)
                pair = read(values + at * (INPUTS // 4) + place, inside, MASKED)
                for token in tl.static_range(TOKENS):
                    chosen = pick(activations[token], codes[row], group, INTERPRETED)
                    total = sums[row * TOKENS + token]
                    total += lower_float(pair, BF16) * lower_float(chosen, BF16)
                    total += upper_float(pair, BF16) * upper_float(chosen, BF16)
                    added = added + (total,)
            sums = added
    for row in tl.static_range(ROWS):
        for token in tl.static_range(TOKENS):
            total = tl.sum(sums[row * TOKENS + token])
            at = first + row
            if HAS_BIAS:
                total += tl.load(bias + tl.minimum(at, OUTPUTS - 1)).to(tl.float32)
            tl.store(out + token * OUTPUTS + at, total, at < OUTPUTS)


@planned
def plan(shape: tuple[int, int, int], dtype: torch.dtype, device: Device = HOPPER) -> tuple[Mapping[str, Any], Config]:
    """The kernel's constants and launch for (tokens, outputs, inputs)."""
    tokens, outputs, inputs = shape
    config = find("sp24_matvec", device, tokens, outputs)
    constants: dict[str, Any] = {"OUTPUTS": outputs, "INPUTS": inputs, "TOKENS": tokens, "ROWS": config.tiles["ROWS"]}
    constants["WORDS"] = min(config.tiles["WORDS"], power_of_two(inputs // 32))
    return constants | {"BF16": dtype == torch.bfloat16}, config


def matvec(x: Tensor, values: Tensor, meta: Tensor, bias: Tensor | None, interpreted: bool) -> Tensor:
    """x: (tokens, inputs) -> (tokens, outputs). All contiguous and aligned to 16 bytes."""
    shape = (x.shape[0], values.shape[0], x.shape[1])
    found = plan(shape, x.dtype, device_of(x.device))
    grid = (cdiv(shape[1], found.constants["ROWS"]),)
    operands = (x.view(torch.int64), values.view(torch.int32), meta)
    return linear(matvec_kernel, grid, found, x.new_empty(shape[:2]), operands, bias, INTERPRETED=interpreted)
