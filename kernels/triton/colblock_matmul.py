"""Balanced column blocks times a batch of tokens: a dense product that reads only the inputs its tile keeps.

Where a token is a row, a narrow block is a few bytes of each token, and the L1 cache, which looks up one line after the
other, is the limit. Many tokens can be exchanged with the inputs first: then an input is a row, and every load is as
long as the tile of tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from crepe.kernels.triton.configs import HOPPER, Config, Device, device_of, find, planned
from crepe.kernels.triton.groups import read
from crepe.kernels.triton.launch import cdiv, linear
from crepe.kernels.triton.tiles import multiplied, store
from crepe.kernels.triton.transpose import exchanged


@triton.jit(do_not_specialize=["tokens"])
def matmul_kernel(
    out,
    x,
    values,
    blocks,
    bias,
    tokens,
    across,
    OUTPUTS: tl.constexpr,
    INPUTS: tl.constexpr,
    KEPT: tl.constexpr,
    TILE: tl.constexpr,
    COLUMNS: tl.constexpr,
    BN: tl.constexpr,
    BM: tl.constexpr,
    BK: tl.constexpr,
    EXCHANGED: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """out: (tokens, OUTPUTS). x: (tokens, INPUTS); EXCHANGED: (INPUTS, across), tokens rounded up to a multiple of BM.
    values: (OUTPUTS, KEPT). blocks: (OUTPUTS / TILE, KEPT / COLUMNS) int32. One program computes BN outputs, all of one
    tile of TILE rows, for BM tokens. Programs of the same outputs follow each other, so that every weight is read from
    memory once."""
    MASKED: tl.constexpr = KEPT % BK != 0
    row = tl.program_id(1) * BN + tl.arange(0, BN)
    at = tl.minimum(row, OUTPUTS - 1)
    first = blocks + (tl.program_id(1) * BN // TILE) * (KEPT // COLUMNS)
    # In 64 bits: many tokens of a wide layer are more than 2^31 numbers.
    token = tl.program_id(0).to(tl.int64) * BM + tl.arange(0, BM)
    if EXCHANGED:
        start_of_token = token
    else:
        start_of_token = tl.minimum(token, tokens - 1) * INPUTS
    total = tl.zeros((BN, BM), tl.float32)
    for start in range(0, KEPT, BK):
        slot = start // COLUMNS + tl.arange(0, BK // COLUMNS)
        kept = start + tl.arange(0, BK)
        block = read(first + slot, slot < KEPT // COLUMNS, MASKED)
        column = tl.reshape(block[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :], (BK,))
        if EXCHANGED:
            start_of_column = column.to(tl.int64) * across
        else:
            # The compiler cannot know that a block starts at a multiple of its length; knowing it, it reads 16 bytes.
            start_of_column = tl.max_contiguous(tl.multiple_of(column, COLUMNS), COLUMNS)
        weight = read(values + at[:, None] * KEPT + kept[None, :], (kept < KEPT)[None, :], MASKED)
        part = read(x + start_of_token[None, :] + start_of_column[:, None], (kept < KEPT)[:, None], MASKED)
        total = multiplied(weight, part, total, INTERPRETED)
    store(out, total, bias, row, token, tokens, OUTPUTS, HAS_BIAS)


@planned
def plan(
    shape: tuple[int, int, int], kept: int, rows: int, columns: int, exchanging: bool = False, device: Device = HOPPER
) -> tuple[Mapping[str, Any], Config]:
    """The kernel's constants and launch for (tokens, outputs, inputs) and `kept` inputs of every tile."""
    tokens, outputs, inputs = shape
    config = find("colblock_prefill" if exchanging else "colblock_matmul", device, tokens, outputs)
    wide = config.tiles["BN"]
    narrow = min(wide, rows)
    constants: dict[str, Any] = {"OUTPUTS": outputs, "INPUTS": inputs, "KEPT": kept, "TILE": rows, "COLUMNS": columns}
    # A warp with 16 or 32 rows has no registers for more tokens.
    tiles = {**config.tiles, "BN": narrow, "BM": min(config.tiles["BM"], 256 if narrow >= 64 else 128)}
    constants |= {**tiles, "EXCHANGED": exchanging}
    return constants, replace(config, warps=max(1, config.warps * narrow // wide))


def matmul(
    x: Tensor,
    values: Tensor,
    blocks: Tensor,
    rows: int,
    columns: int,
    bias: Tensor | None,
    interpreted: bool,
    exchanging: bool = False,
) -> Tensor:
    """x: (tokens, inputs) -> (tokens, outputs). All contiguous and aligned to 16 bytes. exchanging: its axes first."""
    shape = (x.shape[0], values.shape[0], x.shape[1])
    found = plan(shape, values.shape[1], rows, columns, exchanging, device_of(x.device))
    grid = (cdiv(shape[0], found.constants["BM"]), cdiv(shape[1], found.constants["BN"]))
    out = x.new_empty(shape[:2])
    if exchanging:
        x = exchanged(x, found.constants["BM"])
    numbers = (shape[0], x.shape[1])
    return linear(matmul_kernel, grid, found, out, (x, values, blocks), bias, *numbers, INTERPRETED=interpreted)
