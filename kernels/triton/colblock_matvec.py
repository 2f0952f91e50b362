"""Balanced column blocks times one to three tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from crepe.kernels.triton.configs import HOPPER, Config, Device, device_of, find, planned, power_of_two
from crepe.kernels.triton.groups import lower_float, read, upper_float
from crepe.kernels.triton.launch import cdiv, linear

# Inputs of one 16-byte load; a block is one or several.
PIECE = 8


@triton.jit
def matvec_kernel(
    out,
    x,
    values,
    blocks,
    bias,
    OUTPUTS: tl.constexpr,
    INPUTS: tl.constexpr,
    KEPT: tl.constexpr,
    TILE: tl.constexpr,
    COLUMNS: tl.constexpr,
    TOKENS: tl.constexpr,
    ROWS: tl.constexpr,
    PIECES: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    BF16: tl.constexpr,
):
    """out: (TOKENS, OUTPUTS). x: (TOKENS, INPUTS / 2) int32. values: (OUTPUTS, KEPT / 2) int32. blocks:
    (OUTPUTS / TILE, KEPT / COLUMNS) int32. One program computes ROWS outputs of one tile of TILE rows; a piece is four
    int32."""
    LENGTH: tl.constexpr = KEPT // 8
    PER_BLOCK: tl.constexpr = COLUMNS // 8
    MASKED: tl.constexpr = LENGTH % PIECES != 0
    first = tl.program_id(0) * ROWS
    own = blocks + (first // TILE) * (KEPT // COLUMNS)
    inner = tl.arange(0, 4)[None, :]
    sums = (tl.full((PIECES, 4), 0.0, tl.float32),) * (ROWS * TOKENS)
    for start in range(0, LENGTH, PIECES):
        piece = start + tl.arange(0, PIECES)
        inside = (piece < LENGTH)[:, None]
        block = read(own + piece // PER_BLOCK, piece < LENGTH, MASKED)
        column = (block * PER_BLOCK + piece % PER_BLOCK)[:, None] * 4 + inner
        activations = ()
        for token in tl.static_range(TOKENS):
            activations = activations + (read(x + token * (INPUTS // 2) + column, inside, MASKED),)
        added = ()
        for row in tl.static_range(ROWS):
            at = tl.minimum(first + row, OUTPUTS - 1)
            weight = read(values + at * (KEPT // 2) + piece[:, None] * 4 + inner, inside, MASKED)
            for token in tl.static_range(TOKENS):
                total = sums[row * TOKENS + token]
                total += lower_float(weight, BF16) * lower_float(activations[token], BF16)
                total += upper_float(weight, BF16) * upper_float(activations[token], BF16)
                added = added + (total,)
        sums = added
    for row in tl.static_range(ROWS):
        for token in tl.static_range(TOKENS):
            total = tl.sum(tl.sum(sums[row * TOKENS + token], 1), 0)
            at = first + row
            if HAS_BIAS:
                total += tl.load(bias + tl.minimum(at, OUTPUTS - 1)).to(tl.float32)
            tl.store(out + token * OUTPUTS + at, total, at < OUTPUTS)


@planned
def plan(
    shape: tuple[int, int, int], kept: int, rows: int, columns: int, dtype: torch.dtype, device: Device = HOPPER
) -> tuple[Mapping[str, Any], Config]:
    """The kernel's constants and launch for (tokens, outputs, inputs) and `kept` inputs of every tile."""
    tokens, outputs, inputs = shape
    config = find("colblock_matvec", device, tokens, outputs)
    constants: dict[str, Any] = {"OUTPUTS": outputs, "INPUTS": inputs, "KEPT": kept, "TILE": rows, "COLUMNS": columns}
    constants["PIECES"] = min(config.tiles["PIECES"], power_of_two(kept // PIECE))
    return constants | {"TOKENS": tokens, "ROWS": config.tiles["ROWS"], "BF16": dtype == torch.bfloat16}, config


def matvec(x: Tensor, values: Tensor, blocks: Tensor, rows: int, columns: int, bias: Tensor | None) -> Tensor:
    """x: (tokens, inputs) -> (tokens, outputs). All contiguous and aligned to 16 bytes."""
    shape = (x.shape[0], values.shape[0], x.shape[1])
    found = plan(shape, values.shape[1], rows, columns, x.dtype, device_of(x.device))
    grid = (cdiv(shape[1], found.constants["ROWS"]),)
    operands = (x.view(torch.int32), values.view(torch.int32), blocks)
    return linear(matvec_kernel, grid, found, x.new_empty(shape[:2]), operands, bias)
