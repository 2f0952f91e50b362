"""Scores inside of kernels: the factors of a score, groups of neighbours, and keys that order like the scores."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def factor(pointer, columns, inside, PRESENT: tl.constexpr):
    """A factor of every column of the tile; 0 where the score has no such factor."""
    if PRESENT:
        value = tl.load(pointer + columns, mask=inside, other=0.0, eviction_policy="evict_last")
    else:
        value = 0.0
    return value


@triton.jit
def tile_of_columns(norm, column, place, K: tl.constexpr, FACTORS: tl.constexpr, TILE: tl.constexpr):
    """The columns of the tile at `place` in a row, which of them there are, and their two factors."""
    columns = place * TILE + tl.arange(0, TILE)
    inside = columns < K
    norms = factor(norm, columns, inside, FACTORS > 0)
    shares = factor(column, columns, inside, FACTORS > 1)
    return columns, inside, norms, shares


@triton.jit
def score(value, norm, row, column, FACTORS: tl.constexpr):
    """The score of float32 `value`. FACTORS: 0 the value itself, 1 with norm, 2 with norm, row and column."""
    if FACTORS > 0:
        value = tl.abs(value)
    if FACTORS > 1:
        value = value * (row + column)
    if FACTORS > 0:
        value = value * norm
    return value


@triton.jit
def key(score, FACTORS: tl.constexpr):
    """int32 that orders as the float32 scores do; -0.0 and 0.0 are one key. With factors no score is negative."""
    if FACTORS > 0:
        bits = score.to(tl.int32, bitcast=True)
    else:
        bits = (score + 0.0).to(tl.int32, bitcast=True)
        bits = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return bits


@triton.jit
def split4(tile, GROUPS: tl.constexpr):
    """(4 GROUPS,) or (GROUPS, 4) -> the four members of every group, (GROUPS,) each."""
    even, odd = tl.split(tl.reshape(tile, (GROUPS, 2, 2)))
    first, third = tl.split(even)
    second, fourth = tl.split(odd)
    return first, second, third, fourth


@triton.jit
def join4(first, second, third, fourth, GROUPS: tl.constexpr):
    """The inverse of `split4`."""
    return tl.reshape(tl.join(tl.join(first, third), tl.join(second, fourth)), (4 * GROUPS,))


@triton.jit
def split8(tile, GROUPS: tl.constexpr):
    """(8 GROUPS,) -> the eight members of every group, (GROUPS,) each."""
    even, odd = tl.split(tl.reshape(tile, (4 * GROUPS, 2)))
    a, c, e, g = split4(even, GROUPS)
    b, d, f, h = split4(odd, GROUPS)
    return a, b, c, d, e, f, g, h


@triton.jit
def join8(a, b, c, d, e, f, g, h, GROUPS: tl.constexpr):
    """The inverse of `split8`."""
    even, odd = join4(a, c, e, g, GROUPS), join4(b, d, f, h, GROUPS)
    return tl.reshape(tl.join(even, odd), (8 * GROUPS,))


@triton.jit
def duel(first, second, first_rank, second_rank):
    """Ranks after one comparison. A member starts with the rank of its position, as if all before it were better, so
    that a tie changes nothing and the lower index wins."""
    wins = (second > first).to(tl.int32)
    return first_rank + wins, second_rank - wins


@triton.jit
def two_of_four(a, b, c, d):
    """How the two best of a group lie: both among a and b, both among c and d, or else one of each pair, and which.

    A knockout with a match for the second place: four comparisons instead of six. A tie goes to the lower index.
    Returns (both_first, both_last, second_of_first, second_of_last).
    """
    second_of_first, second_of_last = b > a, d > c
    best_first, other_first = tl.where(second_of_first, b, a), tl.where(second_of_first, a, b)
    best_last, other_last = tl.where(second_of_last, d, c), tl.where(second_of_last, c, d)
    last_wins = best_last > best_first
    # Who is second: the loser of the final, or the one that the winner beat before.
    last_is_second = tl.where(last_wins, other_last, best_last) > tl.where(last_wins, best_first, other_first)
    return ~last_wins & ~last_is_second, last_wins & last_is_second, second_of_first, second_of_last


@triton.jit
def kept_of_four(a, b, c, d):
    """Which members of a group are among its two best."""
    both_first, both_last, second_of_first, second_of_last = two_of_four(a, b, c, d)
    ka, kb = both_first | (~both_last & ~second_of_first), both_first | (~both_last & second_of_first)
    kc, kd = both_last | (~both_first & ~second_of_last), both_last | (~both_first & second_of_last)
    return ka, kb, kc, kd


@triton.jit
def ranks4(a, b, c, d):
    """How many of the other three come before each."""
    ra, rb = duel(a, b, 0, 1)
    ra, rc = duel(a, c, ra, 2)
    ra, rd = duel(a, d, ra, 3)
    rb, rc = duel(b, c, rb, rc)
    rb, rd = duel(b, d, rb, rd)
    rc, rd = duel(c, d, rc, rd)
    return ra, rb, rc, rd


@triton.jit
def ranks8(a, b, c, d, e, f, g, h):
    """How many of the other seven come before each: both halves for themselves, then every pair across."""
    ra, rb, rc, rd = ranks4(a, b, c, d)
    re, rf, rg, rh = ranks4(e, f, g, h)
    ra, rb, rc, rd, re = against(a, b, c, d, e, ra, rb, rc, rd, re + 4)
    ra, rb, rc, rd, rf = against(a, b, c, d, f, ra, rb, rc, rd, rf + 4)
    ra, rb, rc, rd, rg = against(a, b, c, d, g, ra, rb, rc, rd, rg + 4)
    ra, rb, rc, rd, rh = against(a, b, c, d, h, ra, rb, rc, rd, rh + 4)
    return ra, rb, rc, rd, re, rf, rg, rh


@triton.jit
def against(a, b, c, d, late, ra, rb, rc, rd, rank):
    """Four earlier members against a later one."""
    ra, rank = duel(a, late, ra, rank)
    rb, rank = duel(b, late, rb, rank)
    rc, rank = duel(c, late, rc, rank)
    rd, rank = duel(d, late, rd, rank)
    return ra, rb, rc, rd, rank
