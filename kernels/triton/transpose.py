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
    """out: (INPUTS, across). x: (tokens, INPUTS). What lies behind the last token is not written."""
    token = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    column = tl.program_id(1) * TILE + tl.arange(0, TILE)
    part = tl.load(
        x + token[:, None] * INPUTS + column[None, :], (token < tokens)[:, None] & (column < INPUTS)[None, :]
    )
    tl.store(
        out + column[:, None].to(tl.int64) * across + token[None, :],
        tl.trans(part),
        (column < INPUTS)[:, None] & (token < tokens)[None, :],
    )


def exchanged(x: Tensor, multiple: int) -> Tensor:
    """x: (tokens, inputs) -> (inputs, tokens rounded up to `multiple`); the rest is whatever the memory held."""
    tokens, inputs = x.shape
    across = cdiv(tokens, multiple) * multiple
    out = torch.empty(inputs, across, dtype=x.dtype, device=x.device)
    grid = (cdiv(tokens, TILE), cdiv(inputs, TILE))
    transpose_kernel[grid](out, x, tokens, across, inputs, TILE, num_warps=4)
    return out
