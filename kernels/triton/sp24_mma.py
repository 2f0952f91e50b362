"""2:4 weights times a small batch of tokens on the sparse tensor cores: no weight is ever unpacked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from crepe.kernels.triton.configs import HOPPER, Config, Device, device_of, find, planned
from crepe.kernels.triton.launch import cdiv, launch, linear
from crepe.kernels.triton.scores import split4
from crepe.kernels.triton.sparse_tensor_core import nibbles, sparse_mma, transposed

# Activations that one program of `arrange_kernel` moves, in pairs.
_SIZE = 1024


@triton.jit
def _words(meta, row, word, more, LENGTH: tl.constexpr, MASKED: tl.constexpr):
    """The words of a row that lie 4 apart from `word` on. Where there is none, codes that are allowed. more: whether
    there is this step at all, which MASKED finds out by itself."""
    at = meta + row * LENGTH + word
    if MASKED:
        w0 = tl.load(at, word < LENGTH, other=0x55005500)
        w1 = tl.load(at + 4, word + 4 < LENGTH, other=0x55005500)
        w2 = tl.load(at + 8, word + 8 < LENGTH, other=0x55005500)
        w3 = tl.load(at + 12, word + 12 < LENGTH, other=0x55005500)
    else:
        w0, w1, w2, w3 = tl.load(at, more), tl.load(at + 4, more), tl.load(at + 8, more), tl.load(at + 12, more)
    return w0, w1, w2, w3


@triton.jit
def _inside(row, OUTPUTS: tl.constexpr, RAGGED: tl.constexpr):
    """A row that there is. Where all are, rows lie a constant apart, which needs no second address."""
    return tl.minimum(row, OUTPUTS - 1) if RAGGED else row


@triton.jit
def _all_words(
    meta, first, word, more, OUTPUTS: tl.constexpr, LENGTH: tl.constexpr, ROWS: tl.constexpr, WIDE: tl.constexpr,
    RAGGED: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """The words of metadata of a step, eight for each tile of rows and block."""
    words = ()
    for tile in tl.static_range(ROWS):
        row = first + 16 * tile
        for wide in tl.static_range(WIDE):
            words = words + _words(meta, _inside(row, OUTPUTS, RAGGED), word + 16 * wide, more, LENGTH, MASKED)
            words = words + _words(meta, _inside(row + 8, OUTPUTS, RAGGED), word + 16 * wide, more, LENGTH, MASKED)
    return words


@triton.jit
def _codes(words, W: tl.constexpr, INTERPRETED: tl.constexpr):
    """Words W to W + 7 as codes of the tensor core, one for each bit position."""
    return transposed(
        nibbles(words[W]), nibbles(words[W + 1]), nibbles(words[W + 2]), nibbles(words[W + 3]),
        nibbles(words[W + 4]), nibbles(words[W + 5]), nibbles(words[W + 6]), nibbles(words[W + 7]), INTERPRETED,
    )  # fmt: skip


@triton.jit
def _weights(
    values, first, mine, more, PHASE: tl.constexpr, OUTPUTS: tl.constexpr, LENGTH: tl.constexpr, ROWS: tl.constexpr,
    AHEAD: tl.constexpr, WIDE: tl.constexpr, RAGGED: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """The kept weights of a phase: for each bit position, block and tile of rows eight tensors of int32. more: as for
    `_words`."""
    weights = ()
    for unit in tl.static_range(AHEAD * WIDE):
        theirs = mine + 16 * (unit % WIDE)
        for tile in tl.static_range(ROWS):
            for side in tl.static_range(2):
                row = _inside(first + 16 * tile + 8 * side, OUTPUTS, RAGGED)[:, None]
                at = values + row * (8 * LENGTH) + theirs + (AHEAD * PHASE + unit // WIDE) * LENGTH
                if MASKED:
                    four = tl.load(at, theirs < LENGTH, other=0, eviction_policy="evict_first")
                else:
                    four = tl.load(at, more, eviction_policy="evict_first")
                weights = weights + split4(four, mine.shape[0])
    return weights


@triton.jit(do_not_specialize=["tokens"])
def arrange_kernel(
    out, x, tokens, INPUTS: tl.constexpr, BLOCKS: tl.constexpr, SIZE: tl.constexpr, EARLY: tl.constexpr
):  # fmt: skip
    """The activations in the order in which the lanes of `mma_kernel` take them, two to an int32. EARLY: lets that
    kernel begin at once; it waits before it reads them.

    out: (tiles of 8 tokens, BLOCKS of 16 words, 8 bit positions, halves, 32 lanes, 4): what the lanes of a warp read at
    once lies side by side, because the L1 cache looks up one line after the other. x: (tokens, INPUTS / 2) int32.
    """
    if EARLY:
        gdc_launch_dependents()
    LENGTH: tl.constexpr = INPUTS // 32
    at = tl.program_id(0).to(tl.int64) * SIZE + tl.arange(0, SIZE)
    register, lane, half, group = at % 4, at // 4 % 32, at // 128 % 2, at // 256 % 8
    block = at // 2048 % BLOCKS
    token = tl.minimum(at // (2048 * BLOCKS) * 8 + lane // 4, tokens - 1)
    word = 16 * block + 4 * (lane % 4 // 2) + 8 * half + register
    pair = x + token * (INPUTS // 2) + 2 * (group * LENGTH + word) + lane % 2
    tl.store(out + at, tl.load(pair, word < LENGTH, other=0))


@triton.jit
def _activations(
    x, tile_of_tokens, block, lane, PHASE: tl.constexpr, BLOCKS: tl.constexpr, TOKENS: tl.constexpr,
    AHEAD: tl.constexpr, WIDE: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """The activations of a phase, as `arrange_kernel` has written them: for each bit position, block and tile of tokens
    eight tensors of int32."""
    lanes = (lane % 32 * 4)[:, None] + tl.arange(0, 4)[None, :]
    activations = ()
    for unit in tl.static_range(AHEAD * WIDE):
        place = block + unit % WIDE
        if MASKED:
            place = tl.minimum(place, BLOCKS - 1)
        for batch in tl.static_range(TOKENS):
            piece = ((tile_of_tokens + batch) * BLOCKS + place) * 8 + AHEAD * PHASE + unit // WIDE
            at = x + (piece.to(tl.int64) * 256)[:, None] + lanes
            near, far = tl.load(at, eviction_policy="evict_last"), tl.load(at + 128, eviction_policy="evict_last")
            activations = activations + split4(near, lane.shape[0]) + split4(far, lane.shape[0])
    return activations


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
def _total(sums, S: tl.constexpr, SPLIT: tl.constexpr):
    """What the warps of a group have found, added. sums S to S + 3 -> (groups, 32 lanes, 2 rows, 2 tokens)."""
    even, odd = tl.join(sums[S], sums[S + 2]), tl.join(sums[S + 1], sums[S + 3])
    return tl.sum(tl.reshape(tl.join(even, odd), (sums[0].shape[0] // 32 // SPLIT, SPLIT, 32, 2, 2)), 1)


@triton.jit
def _store(
    out, bias, total, first, first_token, tokens, OUTPUTS: tl.constexpr, ROWS: tl.constexpr, HAS_BIAS: tl.constexpr
):  # fmt: skip
    """Write sums where they belong."""
    group, lane = tl.arange(0, total.shape[0])[:, None, None, None], tl.arange(0, 32)[None, :, None, None]
    row = first + 16 * ROWS * group + lane // 4 + 8 * tl.arange(0, 2)[None, None, :, None]
    token = first_token + 2 * (lane % 4) + tl.arange(0, 2)[None, None, None, :]
    if HAS_BIAS:
        total += tl.load(bias + tl.minimum(row, OUTPUTS - 1)).to(tl.float32)
    tl.store(out + token.to(tl.int64) * OUTPUTS + row, total, (row < OUTPUTS) & (token < tokens))


@triton.jit(do_not_specialize=["tokens"])
def mma_kernel(
    out, x, values, meta, bias, tokens, OUTPUTS: tl.constexpr, INPUTS: tl.constexpr, ROWS: tl.constexpr,
    TOKENS: tl.constexpr, AHEAD: tl.constexpr, SPLIT: tl.constexpr, BUFFERS: tl.constexpr, WIDE: tl.constexpr,
    EARLY: tl.constexpr, WARPS: tl.constexpr, HAS_BIAS: tl.constexpr, BF16: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """out: (tokens, OUTPUTS). x: as `arrange_kernel` writes it. values: (OUTPUTS, INPUTS / 4) int32. meta: (OUTPUTS,
    INPUTS / 32) int32. SPLIT warps share the inputs of 16 ROWS outputs; the groups of such warps lie along the outputs
    and read the same 8 TOKENS tokens. BUFFERS: 2 asks for the weights of a phase while the products of the one before
    it are computed, 1 when its turn comes. EARLY: begun before `arrange_kernel` has ended.

    A block is 16 words of metadata: with each bit position they describe 16 neighbouring groups, that is two products
    of the tensor core. Lane t of a group of four holds groups 4 t to 4 t + 3, 16 bytes of each row. A warp takes WIDE
    neighbouring blocks at a time and reads of each row 64 WIDE bytes that lie together.
    """
    LENGTH: tl.constexpr = INPUTS // 32
    BLOCKS: tl.constexpr = (LENGTH + 15) // 16
    STEPS: tl.constexpr = (BLOCKS + WIDE * SPLIT - 1) // (WIDE * SPLIT)
    MASKED: tl.constexpr = LENGTH % (16 * WIDE * SPLIT) != 0
    RAGGED: tl.constexpr = OUTPUTS % (16 * ROWS * WARPS // SPLIT) != 0
    PHASES: tl.constexpr = 8 // AHEAD
    lane = tl.arange(0, 32 * WARPS)
    g, t = lane % 32 // 4, lane % 4
    first = tl.program_id(0) * (16 * ROWS * WARPS // SPLIT)
    row, share = first + g, lane // 32
    if WARPS > SPLIT:
        row, share = row + share // SPLIT * (16 * ROWS), share % SPLIT
    sums = (tl.full((32 * WARPS,), 0.0, tl.float32),) * (4 * ROWS * TOKENS)
    if BUFFERS == 2:
        mine = (16 * WIDE * share + 4 * t)[:, None] + tl.arange(0, 4)[None, :]
        words = _all_words(meta, row, 16 * WIDE * share + t, True, OUTPUTS, LENGTH, ROWS, WIDE, RAGGED, MASKED)
        weights = _weights(values, row, mine, True, 0, OUTPUTS, LENGTH, ROWS, AHEAD, WIDE, RAGGED, MASKED)
    if EARLY and not INTERPRETED:
        gdc_wait()
    for step in range(STEPS):
        block = WIDE * (step * SPLIT + share)
        mine = (16 * block + 4 * t)[:, None] + tl.arange(0, 4)[None, :]
        if BUFFERS == 1:
            words = _all_words(meta, row, 16 * block + t, True, OUTPUTS, LENGTH, ROWS, WIDE, RAGGED, MASKED)
        codes = ()
        for tile in tl.static_range(ROWS * WIDE):
            codes = codes + _codes(words, 8 * tile, INTERPRETED)
        for phase in tl.static_range(PHASES):
            # All weights of a phase first: what is in flight hides how long the memory takes.
            if BUFFERS == 1:
                weights = _weights(values, row, mine, True, phase, OUTPUTS, LENGTH, ROWS, AHEAD, WIDE, RAGGED, MASKED)
            elif phase + 1 < PHASES:
                coming = _weights(
                    values, row, mine, True, phase + 1, OUTPUTS, LENGTH, ROWS, AHEAD, WIDE, RAGGED, MASKED
                )  # fmt: skip
            elif STEPS > 1:
                more, word = step + 1 < STEPS, 16 * (block + WIDE * SPLIT) + t
                words = _all_words(meta, row, word, more, OUTPUTS, LENGTH, ROWS, WIDE, RAGGED, MASKED)
                coming = _weights(
                    values, row, mine + 16 * WIDE * SPLIT, more, 0, OUTPUTS, LENGTH, ROWS, AHEAD, WIDE, RAGGED, MASKED
                )  # fmt: skip
            # The assembler would move each load down to where its result is used; it moves none across a barrier.
            tl.debug_barrier()
            activations = _activations(
                x, tl.program_id(1) * TOKENS, block, lane, phase, BLOCKS, TOKENS, AHEAD, WIDE, MASKED
            )
            if BUFFERS == 2:
                tl.debug_barrier()
            for unit in tl.static_range(AHEAD * WIDE):
                added = ()
                for batch in tl.static_range(TOKENS):
                    for tile in tl.static_range(ROWS):
                        added = added + _both(
                            sums, 4 * (batch * ROWS + tile),
                            weights, 8 * (unit * ROWS + tile),
                            activations, 8 * (unit * TOKENS + batch),
                            codes[8 * (tile * WIDE + unit % WIDE) + AHEAD * phase + unit // WIDE], BF16, INTERPRETED,
                        )  # fmt: skip
                sums = added
            if BUFFERS == 2 and (phase + 1 < PHASES or STEPS > 1):
                weights = coming
    for tile in tl.static_range(ROWS * TOKENS):
        total, first_token = _total(sums, 4 * tile, SPLIT), 8 * (tl.program_id(1) * TOKENS + tile // ROWS)
        _store(out, bias, total, first + 16 * (tile % ROWS), first_token, tokens, OUTPUTS, ROWS, HAS_BIAS)


@planned
def plan(shape: tuple[int, int, int], dtype: torch.dtype, device: Device = HOPPER) -> tuple[Mapping[str, Any], Config]:
    """The kernel's constants and launch for (tokens, outputs, inputs)."""
    tokens, outputs, inputs = shape
    config = find("sp24_mma", device, tokens, outputs)
    constants: dict[str, Any] = {"OUTPUTS": outputs, "INPUTS": inputs, **config.tiles, "WARPS": config.warps}
    blocks, split, wide = cdiv(inputs // 32, 16), constants["SPLIT"], constants["WIDE"]
    if cdiv(blocks, split) < wide * cdiv(blocks, wide * split):  # side by side, more would be empty
        constants |= {"WIDE": 1, "AHEAD": min(8, constants["AHEAD"] * wide)}
    return constants | {"EARLY": int(device.early), "BF16": dtype == torch.bfloat16}, config


@planned
def arrangement(tokens: int, inputs: int, tiles: int, early: bool) -> tuple[Mapping[str, Any], Config]:
    """The constants and launch of `arrange_kernel`."""
    return {"INPUTS": inputs, "BLOCKS": cdiv(inputs // 32, 16), "SIZE": _SIZE, "EARLY": early}, Config({}, 4)


def arranged(x: Tensor, tiles: int, early: bool = False) -> Tensor:
    """x: (tokens, inputs) -> int32 for `mma_kernel`, tokens rounded up to a multiple of 8 `tiles`."""
    tokens, inputs = x.shape
    found = arrangement(tokens, inputs, tiles, early)
    out = x.new_empty(cdiv(tokens, 8 * tiles) * tiles * found.constants["BLOCKS"] * 2048, dtype=torch.int32)
    launch(arrange_kernel, (len(out) // _SIZE,), found, out, x.view(torch.int32), tokens)
    return out


def mma(x: Tensor, values: Tensor, meta: Tensor, bias: Tensor | None, interpreted: bool) -> Tensor:
    """x: (tokens, inputs) -> (tokens, outputs). All contiguous and aligned to 16 bytes."""
    shape = (x.shape[0], values.shape[0], x.shape[1])
    found = plan(shape, x.dtype, device_of(x.device))
    constants, config, _ = found
    outputs, tokens = 16 * constants["ROWS"] * config.warps // constants["SPLIT"], 8 * constants["TOKENS"]
    grid = (cdiv(shape[1], outputs), cdiv(shape[0], tokens))
    early = bool(constants["EARLY"]) and not interpreted
    operands = (arranged(x, constants["TOKENS"], early), values.view(torch.int32), meta)
    more = {"INTERPRETED": interpreted} | ({"launch_pdl": True} if early else {})
    return linear(mma_kernel, grid, found, x.new_empty(shape[:2]), operands, bias, shape[0], **more)
