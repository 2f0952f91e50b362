"""Balanced column blocks times a batch of tokens: a dense product that reads only the inputs its tile keeps."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from crepe.kernels.triton.configs import HOPPER, Config, Device, device_of, find
from crepe.kernels.triton.groups import read
from crepe.kernels.triton.launch import linear


@triton.jit(do_not_specialize=["tokens"])
def matmul_kernel(
    out,
    x,
    values,
    blocks,
    bias,
    tokens,
    OUTPUTS: tl.constexpr,
    INPUTS: tl.constexpr,
    KEPT: tl.constexpr,
    TILE: tl.constexpr,
    COLUMNS: tl.constexpr,
    BN: tl.constexpr,
    BM: tl.constexpr,
    BK: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """out: (tokens, OUTPUTS). x: (tokens, INPUTS). values: (OUTPUTS, KEPT). blocks: (OUTPUTS / TILE, KEPT / COLUMNS)
    int32. One program computes BN outputs, all of one tile of TILE rows, for BM tokens. Programs of the same outputs
    follow each other, so that every weight is read from memory once."""
    MASKED: tl.constexpr = KEPT % BK != 0
    row = tl.program_id(1) * BN + tl.arange(0, BN)
    at = tl.minimum(row, OUTPUTS - 1)
    first = blocks + (tl.program_id(1) * BN // TILE) * (KEPT // COLUMNS)
    # In 64 bits: many tokens of a wide layer are more than 2^31 numbers.
    token = tl.program_id(0).to(tl.int64) * BM + tl.arange(0, BM)
    known = tl.minimum(token, tokens - 1)
    total = tl.zeros((BN, BM), tl.float32)
    for start in range(0, KEPT, BK):
        slot = start // COLUMNS + tl.arange(0, BK // COLUMNS)
        kept = start + tl.arange(0, BK)
        block = read(first + slot, slot < KEPT // COLUMNS, MASKED)
        column = tl.reshape(block[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :], (BK,))
        # The compiler cannot know that a block starts at a multiple of its length; knowing it, it reads 16 bytes.
        column = tl.max_contiguous(tl.multiple_of(column, COLUMNS), COLUMNS)
        weight = read(values + at[:, None] * KEPT + kept[None, :], (kept < KEPT)[None, :], MASKED)
        part = read(x + known[None, :] * INPUTS + column[:, None], (kept < KEPT)[:, None], MASKED)
        if INTERPRETED:
            total = tl.dot(weight.to(tl.float32), part.to(tl.float32), total)
        else:
            total = tl.dot(weight, part, total)
    if HAS_BIAS:
        total += tl.load(bias + at).to(tl.float32)[:, None]
    present = (token < tokens)[:, None] & (row < OUTPUTS)[None, :]
    tl.store(out + token[:, None] * OUTPUTS + row[None, :], tl.trans(total), present)


def plan(
    shape: tuple[int, int, int], kept: int, rows: int, columns: int, device: Device = HOPPER
) -> tuple[dict[str, Any], Config]:
    """The kernel's constants and launch for (tokens, outputs, inputs) and `kept` inputs of every tile."""
    tokens, outputs, inputs = shape
    config = find("colblock_matmul", device, tokens, outputs)
    wide = config.tiles["BN"]
    narrow = min(wide, rows)
    constants: dict[str, Any] = {"OUTPUTS": outputs, "INPUTS": inputs, "KEPT": kept, "TILE": rows, "COLUMNS": columns}
    # A warp with 16 or 32 rows has no registers for more tokens.
    tiles = {**config.tiles, "BN": narrow, "BM": min(config.tiles["BM"], 256 if narrow >= 64 else 128)}
    return constants | tiles, replace(config, warps=max(1, config.warps * narrow // wide))


def matmul(
    x: Tensor, values: Tensor, blocks: Tensor, rows: int, columns: int, bias: Tensor | None, interpreted: bool
) -> Tensor:
    """x: (tokens, inputs) -> (tokens, outputs). All contiguous and aligned to 16 bytes."""
    shape = (len(x), len(values), x.shape[1])
    constants, config = plan(shape, values.shape[1], rows, columns, device_of(x.device))
    grid = (triton.cdiv(shape[0], constants["BM"]), triton.cdiv(shape[1], constants["BN"]))
    constants["INTERPRETED"] = interpreted
    return linear(matmul_kernel, grid, x.new_empty(shape[:2]), (x, values, blocks), bias, config, shape[0], **constants)
