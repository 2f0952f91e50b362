"""2:4 weights times a small batch of tokens on the sparse tensor cores: no weight is ever unpacked."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from crepe.kernels.triton.configs import HOPPER, Config, Device, device_of, find
from crepe.kernels.triton.groups import read
from crepe.kernels.triton.launch import linear
from crepe.kernels.triton.scores import split4
from crepe.kernels.triton.sparse_tensor_core import nibbles, sparse_mma, transposed

# Activations that one program of `arrange_kernel` moves, in pairs.
_SIZE = 1024


@triton.jit
def _codes(meta, row, word, LENGTH: tl.constexpr, MASKED: tl.constexpr):
    """The words of a row that lie 4 apart from `word` on, as nibbles. Where there is none, codes that are allowed."""
    at = meta + row * LENGTH + word
    if MASKED:
        w0 = tl.load(at, word < LENGTH, other=0x55005500)
        w1 = tl.load(at + 4, word + 4 < LENGTH, other=0x55005500)
        w2 = tl.load(at + 8, word + 8 < LENGTH, other=0x55005500)
        w3 = tl.load(at + 12, word + 12 < LENGTH, other=0x55005500)
    else:
        w0, w1, w2, w3 = tl.load(at), tl.load(at + 4), tl.load(at + 8), tl.load(at + 12)
    return nibbles(w0), nibbles(w1), nibbles(w2), nibbles(w3)


@triton.jit
def _halves(pointers, inside, upper, MASKED: tl.constexpr):
    """Of four groups of activations, the half of each that a lane has to bring: four tensors of int32."""
    groups = read(pointers, inside, MASKED, "evict_last")
    return split4(tl.where(upper, (groups >> 32).to(tl.int32), groups.to(tl.int32)), pointers.shape[0])


@triton.jit(do_not_specialize=["tokens"])
def arrange_kernel(out, x, tokens, INPUTS: tl.constexpr, BLOCKS: tl.constexpr, SIZE: tl.constexpr):
    """The activations in the order in which the lanes of `mma_kernel` take them, two to an int32.

    out: (tiles of 8 tokens, BLOCKS of 16 words, 8 bit positions, 32 lanes, 8). x: (tokens, INPUTS / 2) int32.
    """
    LENGTH: tl.constexpr = INPUTS // 32
    at = tl.program_id(0).to(tl.int64) * SIZE + tl.arange(0, SIZE)
    register, lane, group = at % 8, at // 8 % 32, at // 256 % 8
    block = at // 2048 % BLOCKS
    token = tl.minimum(at // (2048 * BLOCKS) * 8 + lane // 4, tokens - 1)
    word = 16 * block + 4 * (lane % 4 // 2) + 8 * (register // 4) + register % 4
    pair = x + token * (INPUTS // 2) + 2 * (group * LENGTH + word) + lane % 2
    tl.store(out + at, tl.load(pair, word < LENGTH, other=0))


@triton.jit
def _arranged(x, tile_of_tokens, block, group, lane, BLOCKS: tl.constexpr, LANES: tl.constexpr):
    """What a lane needs of activations that `arrange_kernel` has written: eight tensors of int32."""
    place = (tile_of_tokens * BLOCKS + tl.minimum(block, BLOCKS - 1)) * 8 + group
    at = x + (place.to(tl.int64) * 256 + lane % 32 * 8)[:, None] + tl.arange(0, 4)[None, :]
    return split4(tl.load(at), LANES) + split4(tl.load(at + 4), LANES)


@triton.jit
def _both(
    sums, S: tl.constexpr, weights, W: tl.constexpr, x, X: tl.constexpr, codes, BF16: tl.constexpr,
    INTERPRETED: tl.constexpr,
):  # fmt: skip
    """Both products of 16 neighbouring groups: sums S to S + 3, weights W to W + 7 and activations X to X + 7."""
    c0, c1, c2, c3 = sparse_mma(
        weights[W], weights[W + 4], weights[W + 1], weights[W + 5], x[X], x[X + 4], x[X + 1], x[X + 5],
        sums[S], sums[S + 1], sums[S + 2], sums[S + 3], codes, 0, BF16, INTERPRETED,
    )  # fmt: skip
    return sparse_mma(
        weights[W + 2], weights[W + 6], weights[W + 3], weights[W + 7], x[X + 2], x[X + 6], x[X + 3], x[X + 7],
        c0, c1, c2, c3, codes, 1, BF16, INTERPRETED,
    )  # fmt: skip


@triton.jit
def _store(
    out, bias, sums, first, first_token, tokens, OUTPUTS: tl.constexpr, ROWS: tl.constexpr, TOKENS: tl.constexpr,
    WARPS: tl.constexpr, HAS_BIAS: tl.constexpr,
):  # fmt: skip
    """Add what the warps have found, and write it where the lanes' sums belong."""
    row_of = (tl.arange(0, 32) // 4)[:, None, None] + 8 * tl.arange(0, 2)[None, :, None]
    token_of = 2 * (tl.arange(0, 32) % 4)[:, None, None] + tl.arange(0, 2)[None, None, :]
    for batch in tl.static_range(TOKENS):
        for tile in tl.static_range(ROWS):
            even = tl.join(sums[4 * (batch * ROWS + tile)], sums[4 * (batch * ROWS + tile) + 2])
            odd = tl.join(sums[4 * (batch * ROWS + tile) + 1], sums[4 * (batch * ROWS + tile) + 3])
            total = tl.sum(tl.reshape(tl.join(even, odd), (WARPS, 32, 2, 2)), 0)
            row, token = first + 16 * tile + row_of, first_token + 8 * batch + token_of
            if HAS_BIAS:
                total += tl.load(bias + tl.minimum(row, OUTPUTS - 1)).to(tl.float32)
            tl.store(out + token.to(tl.int64) * OUTPUTS + row, total, (row < OUTPUTS) & (token < tokens))


@triton.jit(do_not_specialize=["tokens"])
def mma_kernel(
    out,
    x,
    values,
    meta,
    bias,
    tokens,
    OUTPUTS: tl.constexpr,
    INPUTS: tl.constexpr,
    ROWS: tl.constexpr,
    TOKENS: tl.constexpr,
    AHEAD: tl.constexpr,
    ARRANGED: tl.constexpr,
    WARPS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    BF16: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """out: (tokens, OUTPUTS). x: (tokens, INPUTS / 4) int64, or ARRANGED by `arrange_kernel`. values: (OUTPUTS,
    INPUTS / 4) int32. meta: (OUTPUTS, INPUTS / 32) int32. One program computes 16 ROWS outputs of 8 TOKENS tokens; its
    warps share the inputs.

    A warp takes 16 words of metadata at a time: with each bit position they describe 16 neighbouring groups, that is
    two products of the tensor core. Lane t of a group of four holds groups 4 t to 4 t + 3, 16 bytes of each row.
    """
    LENGTH: tl.constexpr = INPUTS // 32
    MASKED: tl.constexpr = LENGTH % (16 * WARPS) != 0
    BLOCKS: tl.constexpr = (LENGTH + 15) // 16
    LANES: tl.constexpr = 32 * WARPS
    lane = tl.arange(0, LANES)
    g, t = lane % 32 // 4, lane % 4
    four = tl.arange(0, 4)[None, :]
    upper = (t % 2 == 1)[:, None]
    first, first_token = tl.program_id(0) * 16 * ROWS, tl.program_id(1) * 8 * TOKENS
    sums = (tl.full((LANES,), 0.0, tl.float32),) * (4 * ROWS * TOKENS)
    for start in range(0, LENGTH, 16 * WARPS):
        word = start + lane // 32 * 16
        codes = ()
        for tile in tl.static_range(ROWS):
            row = first + 16 * tile + g
            n0, n1, n2, n3 = _codes(meta, tl.minimum(row, OUTPUTS - 1), word + t, LENGTH, MASKED)
            n4, n5, n6, n7 = _codes(meta, tl.minimum(row + 8, OUTPUTS - 1), word + t, LENGTH, MASKED)
            codes = codes + transposed(n0, n1, n2, n3, n4, n5, n6, n7, INTERPRETED)
        mine = (word + 4 * t)[:, None] + four
        theirs = (word + 4 * (t // 2))[:, None] + four
        for phase in tl.static_range(8 // AHEAD):
            weights = ()  # all of a phase first: what is in flight hides how long the memory takes
            for ahead in tl.static_range(AHEAD):
                for tile in tl.static_range(ROWS):
                    for side in tl.static_range(2):
                        row = tl.minimum(first + 16 * tile + 8 * side + g, OUTPUTS - 1)[:, None]
                        at = values + row * (INPUTS // 4) + mine + (AHEAD * phase + ahead) * LENGTH
                        weights = weights + split4(read(at, mine < LENGTH, MASKED, "evict_first"), LANES)
            # The assembler would move each load down to where its result is used; it moves none across a barrier.
            tl.debug_barrier()
            activations = ()
            for ahead in tl.static_range(AHEAD):
                for batch in tl.static_range(TOKENS):
                    if ARRANGED:
                        tile_of_tokens = tl.program_id(1) * TOKENS + batch
                        activations = activations + _arranged(
                            x, tile_of_tokens, word // 16, AHEAD * phase + ahead, lane, BLOCKS, LANES
                        )
                    else:
                        token = tl.minimum(first_token + 8 * batch + g, tokens - 1).to(tl.int64)
                        at = x + (token * (INPUTS // 4) + (AHEAD * phase + ahead) * LENGTH)[:, None] + theirs
                        activations = activations + _halves(at, theirs < LENGTH, upper, MASKED)
                        activations = activations + _halves(at + 8, theirs + 8 < LENGTH, upper, MASKED)
            for ahead in tl.static_range(AHEAD):
                added = ()
                for batch in tl.static_range(TOKENS):
                    for tile in tl.static_range(ROWS):
                        added = added + _both(
                            sums, 4 * (batch * ROWS + tile),
                            weights, 8 * (ahead * ROWS + tile),
                            activations, 8 * (ahead * TOKENS + batch),
                            codes[8 * tile + AHEAD * phase + ahead], BF16, INTERPRETED,
                        )  # fmt: skip
                sums = added
    _store(out, bias, sums, first, first_token, tokens, OUTPUTS, ROWS, TOKENS, WARPS, HAS_BIAS)


def plan(shape: tuple[int, int, int], dtype: torch.dtype, device: Device = HOPPER) -> tuple[dict[str, Any], Config]:
    """The kernel's constants and launch for (tokens, outputs, inputs)."""
    tokens, outputs, inputs = shape
    config = find("sp24_mma", device, tokens, outputs)
    constants: dict[str, Any] = {"OUTPUTS": outputs, "INPUTS": inputs, **config.tiles, "WARPS": config.warps}
    return constants | {"BF16": dtype == torch.bfloat16}, config


def arranged(x: Tensor, tiles: int) -> Tensor:
    """x: (tokens, inputs) -> int32 for `arrange_kernel`, tokens rounded up to a multiple of 8 `tiles`."""
    tokens, inputs = x.shape
    blocks = triton.cdiv(inputs // 32, 16)
    out = x.new_empty(triton.cdiv(tokens, 8 * tiles) * tiles * blocks * 2048, dtype=torch.int32)
    arrange_kernel[(len(out) // _SIZE,)](out, x.view(torch.int32), tokens, inputs, blocks, _SIZE, num_warps=4)
    return out


def mma(x: Tensor, values: Tensor, meta: Tensor, bias: Tensor | None, interpreted: bool) -> Tensor:
    """x: (tokens, inputs) -> (tokens, outputs). All contiguous and aligned to 16 bytes."""
    shape = (len(x), len(values), x.shape[1])
    constants, config = plan(shape, x.dtype, device_of(x.device))
    grid = (triton.cdiv(shape[1], 16 * constants["ROWS"]), triton.cdiv(shape[0], 8 * constants["TOKENS"]))
    activations = arranged(x, constants["TOKENS"]) if constants["ARRANGED"] else x.view(torch.int64)
    operands = (activations, values.view(torch.int32), meta)
    constants["INTERPRETED"] = interpreted
    return linear(mma_kernel, grid, x.new_empty(shape[:2]), operands, bias, config, shape[0], **constants)
