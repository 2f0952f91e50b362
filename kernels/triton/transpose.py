"""Activations with tokens and inputs exchanged, for kernels that pick inputs one by one."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from crepe.kernels.triton.launch import cdiv

TILE = 64


@triton.jit(do_not_specialize=["tokens"])
def transpose_kernel(out, x, tokens, across, INPUTS: tl.constexpr, TILE: tl.constexpr):
    """out: (INPUTS, across), zero behind the last token: up to a width that 16 divides, it is written 16 bytes at once.
    x: (tokens, INPUTS)."""
    token = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    column = tl.program_id(1) * TILE + tl.arange(0, TILE)
    part = tl.load(
        x + token[:, None] * INPUTS + column[None, :], (token < tokens)[:, None] & (column < INPUTS)[None, :], other=0
    )
    tl.store(
        out + column[:, None].to(tl.int64) * across + token[None, :],
        tl.trans(part),
        (column < INPUTS)[:, None] & (token < across)[None, :],
    )


def exchanged(x: Tensor, multiple: int) -> Tensor:
    """x: (tokens, inputs) -> (inputs, tokens rounded up to `multiple`), zero behind the last."""
    tokens, inputs = x.shape
    across = cdiv(tokens, multiple) * multiple
    out = torch.empty(inputs, across, dtype=x.dtype, device=x.device)
    grid = (cdiv(across, TILE), cdiv(inputs, TILE))
    transpose_kernel[grid](out, x, tokens, across, inputs, TILE, num_warps=4)
    return out
