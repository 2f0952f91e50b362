"""Steps that the kernels share. A group is four inputs of a 2:4 weight: one int64 of activations, one int32 of kept
values, and a code in an int32 word of metadata (`crepe.kernels.reference.sp24` has the layout).
"""

from __future__ import annotations

import triton
import triton.language as tl

NO_HINT = tl.constexpr("")


@triton.jit
def read(pointers, inside, MASKED: tl.constexpr, EVICT: tl.constexpr = NO_HINT):
    """Load, zero outside. A mask that is not there costs nothing; one that is always true does. EVICT: what the caches
    may do with it, as `tl.load` calls it."""
    if MASKED:
        return tl.load(pointers, inside, other=0, eviction_policy=EVICT)
    else:
        return tl.load(pointers, eviction_policy=EVICT)


@triton.jit
def permute_bytes(low, high, selector, INTERPRETED: tl.constexpr):
    """Four of the eight bytes of (high, low), chosen by the four lower nibbles of `selector`: one instruction, but not
    in Triton's interpreter, which has no inline assembly."""
    if INTERPRETED:
        both = (low.to(tl.int64) & 0xFFFFFFFF) | (high.to(tl.int64) << 32)
        first = (both >> (8 * (selector & 7))) & 0xFF
        second = (both >> (8 * ((selector >> 4) & 7))) & 0xFF
        third = (both >> (8 * ((selector >> 8) & 7))) & 0xFF
        fourth = (both >> (8 * ((selector >> 12) & 7))) & 0xFF
        return (first | (second << 8) | (third << 16) | (fourth << 24)).to(tl.int32)
    else:
        return tl.inline_asm_elementwise(
            "prmt.b32 $0, $1, $2, $3;", "=r,r,r,r", [low, high, selector], dtype=tl.int32, is_pure=True, pack=1
        )


@triton.jit
def pick(activations, words, GROUP: tl.constexpr, INTERPRETED: tl.constexpr):
    """The two activations that the kept pair meets, int32. activations: int64, words: int32 of the same shape."""
    SHIFT: tl.constexpr = 2 * (GROUP % 4) + 16 * (GROUP // 4)
    # Position i is bytes 2 i and 2 i + 1: nibbles 0x22 * i + 0x10.
    selector = ((words >> SHIFT) & 0x0303) * 0x22 + 0x1010
    return permute_bytes(activations.to(tl.int32), (activations >> 32).to(tl.int32), selector, INTERPRETED)


@triton.jit
def expand(pair, words, GROUP: tl.constexpr, INTERPRETED: tl.constexpr):
    """The four weights of a group, zeros included, as two packed pairs. pair, words: int32 of the same shape."""
    SHIFT: tl.constexpr = 2 * (GROUP % 4) + 16 * (GROUP // 4)
    # Nibble 4 takes a byte of the zero; position i takes bytes 0 and 1 (or 2 and 3) in nibbles 2 i and 2 i + 1.
    first = 0x54 << (((words << 3) >> SHIFT) & 0x18)
    second = 0x76 << ((words >> (SHIFT + 5)) & 0x18)
    selector = first ^ second ^ 0x44444444
    zero = pair & 0
    lower = permute_bytes(pair, zero, selector, INTERPRETED)
    return lower, permute_bytes(pair, zero, selector >> 16, INTERPRETED)


@triton.jit
def lower_float(pair, BF16: tl.constexpr):
    """The lower 16 bits as float32. A bfloat16 is the upper half of a float32: no conversion, and no arithmetic in
    bfloat16, which the interpreter gets wrong."""
    if BF16:
        return (pair << 16).to(tl.float32, bitcast=True)
    else:
        return pair.to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)


@triton.jit
def upper_float(pair, BF16: tl.constexpr):
    """The upper 16 bits as float32."""
    if BF16:
        return (pair & -65536).to(tl.float32, bitcast=True)
    else:
        return (pair >> 16).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
