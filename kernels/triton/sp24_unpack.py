"""2:4 weights to dense ones, for products with so many tokens that a dense product pays."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from crepe.kernels.triton.configs import HOPPER, Config, Device, device_of, find, planned, power_of_two
from crepe.kernels.triton.groups import expand, read
from crepe.kernels.triton.launch import cdiv, launch


@triton.jit
def unpack_kernel(out, values, meta, INPUTS: tl.constexpr, WORDS: tl.constexpr, INTERPRETED: tl.constexpr):
    """out: (outputs, INPUTS / 4) int64, a group each. values: (outputs, INPUTS / 4) int32. meta: (outputs, INPUTS / 32)
    int32. One program unpacks WORDS words of one row."""
    LENGTH: tl.constexpr = INPUTS // 32
    MASKED: tl.constexpr = LENGTH % WORDS != 0
    row = tl.program_id(0)
    word = tl.program_id(1) * WORDS + tl.arange(0, WORDS)
    inside = word < LENGTH
    codes = read(meta + row * LENGTH + word, inside, MASKED)
    for group in tl.static_range(8):
        place = row * (INPUTS // 4) + group * LENGTH + word
        lower, upper = expand(read(values + place, inside, MASKED), codes, group, INTERPRETED)
        quad = (lower.to(tl.int64) & 0xFFFFFFFF) | (upper.to(tl.int64) << 32)
        tl.store(out + place, quad, inside)


@planned
def plan(outputs: int, inputs: int, device: Device = HOPPER) -> tuple[Mapping[str, Any], Config]:
    """The kernel's constants and launch."""
    config = find("sp24_unpack", device, 1, outputs)
    return {"INPUTS": inputs, "WORDS": min(config.tiles["WORDS"], power_of_two(inputs // 32))}, config


def unpack(values: Tensor, meta: Tensor, interpreted: bool) -> Tensor:
    """values: (outputs, inputs / 2), meta: (outputs, inputs / 32) -> (outputs, inputs) of the values' dtype. All
    contiguous and aligned to 16 bytes."""
    outputs, inputs = values.shape[0], 2 * values.shape[1]
    found = plan(outputs, inputs, device_of(values.device))
    grid = (outputs, cdiv(inputs // 32, found.constants["WORDS"]))
    out = values.new_empty(outputs, inputs)
    operands = (out.view(torch.int64), values.view(torch.int32), meta)
    launch(unpack_kernel, grid, found, *operands, INTERPRETED=interpreted)
    return out
