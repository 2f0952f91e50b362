"""Steps of the kernels that multiply a tile of weights, on the left, with a tile of tokens."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def multiplied(weight, part, total, INTERPRETED: tl.constexpr):
    """total + weight @ part. weight: (BN, BK), part: (BK, BM), 16 bits; total: (BN, BM) float32."""
    if INTERPRETED:
        total = tl.dot(weight.to(tl.float32), part.to(tl.float32), total)
    else:
        total = tl.dot(weight, part, total)
    return total


@triton.jit
def store(out, total, bias, row, token, tokens, OUTPUTS: tl.constexpr, HAS_BIAS: tl.constexpr):
    """Write total (BN, BM), with the bias, where its rows and tokens lie in out (tokens, OUTPUTS)."""
    if HAS_BIAS:
        total += tl.load(bias + tl.minimum(row, OUTPUTS - 1)).to(tl.float32)[:, None]
    present = (token < tokens)[:, None] & (row < OUTPUTS)[None, :]
    tl.store(out + token[:, None] * OUTPUTS + row[None, :], tl.trans(total), present)
