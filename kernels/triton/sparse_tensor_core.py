"""The sparse tensor core as Triton can reach it: one instruction for a whole warp, written as inline assembly.

Triton itself knows no sparse products. Every tensor here is 1-D with an element for each lane of each warp, so that a
tensor is one register: element i belongs to lane i % 32 of warp i // 32. Lane 4 g + t has the operands that PTX names
"group g, thread t" (mma.sp.m16n8k32 for 16-bit floats).
"""

from __future__ import annotations

import triton
import triton.language as tl

from crepe.kernels.triton.groups import lower_float, permute_bytes, upper_float


@triton.jit
def nibbles(words):
    """The codes of the eight groups of a word, side by side: group j at bits 4 j, its lower position first."""
    low = words & 0x00FF00FF
    low = (low | (low << 4)) & 0x0F0F0F0F
    low = (low | (low << 2)) & 0x33333333
    high = (words >> 8) & 0x00FF00FF
    high = (high | (high << 4)) & 0x0F0F0F0F
    high = (high | (high << 2)) & 0x33333333
    return low | (high << 2)


@triton.jit
def _exchange(one, other, FIRST: tl.constexpr, SECOND: tl.constexpr, INTERPRETED: tl.constexpr):
    first = permute_bytes(one, other, tl.full(one.shape, FIRST, tl.int32), INTERPRETED)
    return first, permute_bytes(one, other, tl.full(one.shape, SECOND, tl.int32), INTERPRETED)


@triton.jit
def transposed(n0, n1, n2, n3, n4, n5, n6, n7, INTERPRETED: tl.constexpr):
    """Eight words of eight nibbles with rows and columns exchanged: nibble i of the j-th is nibble j of n_i."""
    a0, b0 = _exchange(n0, n4, 0x5410, 0x7632, INTERPRETED)
    a1, b1 = _exchange(n1, n5, 0x5410, 0x7632, INTERPRETED)
    a2, b2 = _exchange(n2, n6, 0x5410, 0x7632, INTERPRETED)
    a3, b3 = _exchange(n3, n7, 0x5410, 0x7632, INTERPRETED)
    c0, c2 = _exchange(a0, a2, 0x6240, 0x7351, INTERPRETED)
    c1, c3 = _exchange(a1, a3, 0x6240, 0x7351, INTERPRETED)
    d0, d2 = _exchange(b0, b2, 0x6240, 0x7351, INTERPRETED)
    d1, d3 = _exchange(b1, b3, 0x6240, 0x7351, INTERPRETED)
    return (
        (c0 & 0x0F0F0F0F) | ((c1 & 0x0F0F0F0F) << 4),
        ((c0 >> 4) & 0x0F0F0F0F) | (c1 & -0x0F0F0F10),
        (c2 & 0x0F0F0F0F) | ((c3 & 0x0F0F0F0F) << 4),
        ((c2 >> 4) & 0x0F0F0F0F) | (c3 & -0x0F0F0F10),
        (d0 & 0x0F0F0F0F) | ((d1 & 0x0F0F0F0F) << 4),
        ((d0 >> 4) & 0x0F0F0F0F) | (d1 & -0x0F0F0F10),
        (d2 & 0x0F0F0F0F) | ((d3 & 0x0F0F0F0F) << 4),
        ((d2 >> 4) & 0x0F0F0F0F) | (d3 & -0x0F0F0F10),
    )


@triton.jit
def sparse_mma(
    a0, a1, a2, a3, b0, b1, b2, b3, c0, c1, c2, c3, meta, HALF: tl.constexpr, BF16: tl.constexpr,
    INTERPRETED: tl.constexpr,
):  # fmt: skip
    """Sixteen rows of eight groups times eight tokens, added to c.

    a: kept pairs; a0 and a2 of row g and groups t and t + 4, a1 and a3 of row g + 8. b: pairs of activations of token
    g; b_r of group t // 2 + 2 r, of which lanes with even t have the first half. c: rows g (c0, c1) and g + 8 (c2, c3)
    of tokens 2 t and 2 t + 1. meta: a nibble for each group, row g in the lower 16 bits and row g + 8 in the upper;
    lane t = 2 HALF has groups 0 to 3, and the next lane groups 4 to 7.
    """
    if INTERPRETED:
        return _emulated(a0, a1, a2, a3, b0, b1, b2, b3, c0, c1, c2, c3, meta, HALF, BF16)
    else:
        KIND: tl.constexpr = "bf16" if BF16 else "f16"
        return tl.inline_asm_elementwise(
            "mma.sp::ordered_metadata.sync.aligned.m16n8k32.row.col.f32."
            + KIND
            + "."
            + KIND
            + ".f32 {$0,$1,$2,$3}, {$4,$5,$6,$7}, {$8,$9,$10,$11}, {$12,$13,$14,$15}, $16, "
            + ("0x1;" if HALF else "0x0;"),
            "=f,=f,=f,=f,r,r,r,r,r,r,r,r,f,f,f,f,r",
            [a0, a1, a2, a3, b0, b1, b2, b3, c0, c1, c2, c3, meta],
            dtype=(tl.float32, tl.float32, tl.float32, tl.float32),
            is_pure=True,
            pack=1,
        )


@triton.jit
def _pairs(first, second):
    """(warps, 8 rows, 8 groups): the kept pairs of groups t, and of groups t + 4. first, second: (lanes,)."""
    both = tl.reshape(tl.join(first, second), (first.shape[0] // 32, 8, 4, 2))
    return tl.reshape(tl.permute(both, (0, 1, 3, 2)), (first.shape[0] // 32, 8, 8))


@triton.jit
def _nibbles_of(meta, HALF: tl.constexpr, SHIFT: tl.constexpr):
    """(warps, 8 rows, 8 groups): the codes that lanes t = 2 HALF and 2 HALF + 1 have at bits SHIFT to SHIFT + 15."""
    by_lane = tl.reshape(meta, (meta.shape[0] // 32, 8, 2, 2))
    mine = tl.sum(tl.where(tl.arange(0, 2)[None, None, :, None] == HALF, by_lane, 0), 2)
    codes = mine[:, :, :, None] >> (SHIFT + 4 * tl.arange(0, 4))[None, None, None, :]
    return tl.reshape(codes & 15, (meta.shape[0] // 32, 8, 8))


@triton.jit
def _times(pairs, codes, x0, x1, x2, x3, BF16: tl.constexpr):
    """(warps, 8 rows, 8 tokens): kept pairs times the activations at their positions. x_p: (warps, 8 tokens, 8 groups)
    of position p."""
    total = tl.zeros((pairs.shape[0], 8, 8), tl.float32)
    for side in tl.static_range(2):
        kept = upper_float(pairs, BF16) if side else lower_float(pairs, BF16)
        place = ((codes >> (2 * side)) & 3)[:, :, None, :]
        x = tl.where(place < 2, tl.where(place == 0, x0[:, None], x1[:, None]), 0.0)
        x = tl.where(place >= 2, tl.where(place == 2, x2[:, None], x3[:, None]), x)
        total += tl.sum(kept[:, :, None, :] * x, 3)
    return total


@triton.jit
def _by_lane(sums):
    """(warps, 8 rows, 8 tokens) -> of tokens 2 t and of tokens 2 t + 1, (lanes,) each."""
    even, odd = tl.split(tl.reshape(sums, (sums.shape[0], 8, 4, 2)))
    return tl.reshape(even, (32 * sums.shape[0],)), tl.reshape(odd, (32 * sums.shape[0],))


@triton.jit
def _emulated(
    a0, a1, a2, a3, b0, b1, b2, b3, c0, c1, c2, c3, meta, HALF: tl.constexpr, BF16: tl.constexpr
):  # fmt: skip
    """What the instruction computes, for Triton's interpreter, from the layout that PTX documents."""
    WARPS: tl.constexpr = meta.shape[0] // 32
    # (warps, 8 tokens, t // 2, t % 2, r) -> (warps, 8 tokens, 8 groups t // 2 + 2 r, halves t % 2)
    x = tl.reshape(tl.join(tl.join(b0, b2), tl.join(b1, b3)), (WARPS, 8, 2, 2, 4))
    first, second = tl.split(tl.reshape(tl.permute(x, (0, 1, 4, 2, 3)), (WARPS, 8, 8, 2)))
    x0, x1 = lower_float(first, BF16), upper_float(first, BF16)
    x2, x3 = lower_float(second, BF16), upper_float(second, BF16)
    d0, d1 = _by_lane(_times(_pairs(a0, a2), _nibbles_of(meta, HALF, 0), x0, x1, x2, x3, BF16))
    d2, d3 = _by_lane(_times(_pairs(a1, a3), _nibbles_of(meta, HALF, 16), x0, x1, x2, x3, BF16))
    return c0 + d0, c1 + d1, c2 + d2, c3 + d3
