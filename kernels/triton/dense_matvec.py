"""Dense weights times one to three tokens: what the sparse kernels are held against, written in the same way."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from crepe.kernels.triton.groups import lower_float, read, upper_float
from crepe.kernels.triton.launch import cdiv

ROWS = 4
PAIRS = 256


@triton.jit
def matvec_kernel(
    out,
    x,
    weight,
    OUTPUTS: tl.constexpr,
    INPUTS: tl.constexpr,
    TOKENS: tl.constexpr,
    ROWS: tl.constexpr,
    PAIRS: tl.constexpr,
    BF16: tl.constexpr,
):
    """out: (TOKENS, OUTPUTS). x: (TOKENS, INPUTS / 2) int32. weight: (OUTPUTS, INPUTS / 2) int32."""
    LENGTH: tl.constexpr = INPUTS // 2
    MASKED: tl.constexpr = LENGTH % PAIRS != 0
    first = tl.program_id(0) * ROWS
    sums = (tl.full((PAIRS,), 0.0, tl.float32),) * (ROWS * TOKENS)
    for start in range(0, LENGTH, PAIRS):
        place = start + tl.arange(0, PAIRS)
        inside = place < LENGTH
        activations = ()
        for token in tl.static_range(TOKENS):
            activations = activations + (read(x + token * LENGTH + place, inside, MASKED),)
        added = ()
        for row in tl.static_range(ROWS):
            at = tl.minimum(first + row, OUTPUTS - 1)
            pair = read(weight + at * LENGTH + place, inside, MASKED)
            for token in tl.static_range(TOKENS):
                total = sums[row * TOKENS + token]
                total += lower_float(pair, BF16) * lower_float(activations[token], BF16)
                total += upper_float(pair, BF16) * upper_float(activations[token], BF16)
                added = added + (total,)
        sums = added
    for row in tl.static_range(ROWS):
        for token in tl.static_range(TOKENS):
            at = first + row
            tl.store(out + token * OUTPUTS + at, tl.sum(sums[row * TOKENS + token]), at < OUTPUTS)


def matvec(x: Tensor, weight: Tensor) -> Tensor:
    """x: (tokens, inputs), weight: (outputs, inputs) -> (tokens, outputs). Both contiguous, of 16-bit floats."""
    out = x.new_empty(len(x), len(weight))
    matvec_kernel[(cdiv(len(weight), ROWS),)](
        out,
        x.view(torch.int32),
        weight.view(torch.int32),
        OUTPUTS=len(weight),
        INPUTS=x.shape[1],
        TOKENS=len(x),
        ROWS=ROWS,
        PAIRS=PAIRS,
        BF16=x.dtype == torch.bfloat16,
        num_warps=1,
    )
    return out
