"""Score, selection and packing of 2:4 in one read of the weight, in the layout of `crepe.kernels.reference.sp24`."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from crepe.kernels.reference.sp24 import INPUTS
from crepe.kernels.triton.configs import device_of, find
from crepe.kernels.triton.launch import cdiv, factors_of, tile_of
from crepe.kernels.triton.scores import factor, score, split4, two_of_four


@triton.jit
def prune_pack_kernel(
    values,
    norm,
    row,
    column,
    packed,
    meta,
    outputs,
    K: tl.constexpr,
    FACTORS: tl.constexpr,
    ROWS: tl.constexpr,
    WORDS: tl.constexpr,
):
    # Said to be less contiguous than they are, so that a store keeps the layout of what it stores: 8 bytes per thread
    # instead of 16 and no shuffles.
    words = tl.max_contiguous(tl.program_id(1) * WORDS + tl.arange(0, WORDS), 2)
    # Inputs and kept values of the tile within one eighth of the row: the groups of a word are that far apart.
    inputs = tl.program_id(1) * WORDS * 4 + tl.arange(0, 4 * WORDS)
    pairs = tl.max_contiguous(tl.program_id(1) * WORDS * 2 + tl.arange(0, 2 * WORDS), 4)
    for step in range(ROWS):
        line = tl.program_id(0) * ROWS + step
        present = line < outputs
        start = line.to(tl.int64) * K
        own = tl.load(row + line, mask=present, other=0.0) if FACTORS > 1 else 0.0
        word = tl.zeros((WORDS,), tl.int32)
        for j in tl.static_range(8):
            inside = inputs < K // 8
            columns = j * (K // 8) + inputs
            value = tl.load(values + start + columns, mask=inside & present, other=0.0).to(tl.float32)
            norms = factor(norm, columns, inside, FACTORS > 0)
            shares = factor(column, columns, inside, FACTORS > 1)
            found = score(value, norms, own, shares, FACTORS)
            pair, code = best_pair(value, found, WORDS)
            target = packed + line.to(tl.int64) * (K // 2) + j * (K // 16) + pairs
            tl.store(target, pair.to(packed.dtype.element_ty), mask=(pairs < K // 16) & present)
            word |= code << (2 * (j % 4) + 16 * (j // 4))
        tl.store(meta + line.to(tl.int64) * (K // 32) + words, word, mask=(words < K // 32) & present)


@triton.jit
def best_pair(value, found, GROUPS: tl.constexpr):
    """The kept pair of every group, (2 GROUPS,) float32, and its code: the lower position, the higher one 8 bits up."""
    va, vb, vc, vd = split4(value, GROUPS)
    a, b, c, d = split4(found, GROUPS)
    both_first, both_last, second_of_first, second_of_last = two_of_four(a, b, c, d)
    is_b, is_d = second_of_first & ~both_first, second_of_last | both_last
    low = tl.where(both_last, vc, tl.where(is_b, vb, va))
    high = tl.where(both_first, vb, tl.where(is_d, vd, vc))
    low_position = tl.where(both_last, 2, tl.where(is_b, 1, 0))
    high_position = tl.where(both_first, 1 << 8, tl.where(is_d, 3 << 8, 2 << 8))
    # The addition turns -0.0 into 0.0.
    return tl.reshape(tl.join(low, high), (2 * GROUPS,)) + 0.0, low_position | high_position


def prune_pack(values: Tensor, norm: Tensor | None, row: Tensor | None, column: Tensor | None) -> tuple[Tensor, Tensor]:
    """See `crepe.kernels.reference.selection.prune_pack`."""
    outputs, inputs = values.shape
    packed = values.new_empty(outputs, inputs // 2)
    meta = values.new_empty(outputs, inputs // INPUTS, dtype=torch.int32)
    config = find("prune_pack", device_of(values.device), 0, outputs)
    rows, words = config.tiles["ROWS"], tile_of(inputs // INPUTS, config.tiles["WORDS"], least=4)
    grid = (cdiv(outputs, rows), cdiv(inputs // INPUTS, words))
    prune_pack_kernel[grid](
        values,
        norm,
        row,
        column,
        packed,
        meta,
        outputs,
        K=inputs,
        FACTORS=factors_of(norm, row),
        ROWS=rows,
        WORDS=words,
        num_warps=config.warps,
    )
    return packed, meta
