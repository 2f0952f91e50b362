"""What launching has in common: sizes of tiles, the form of a score, the arguments of a linear layer."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from crepe.kernels.triton.configs import Config


def cdiv(size: int, part: int) -> int:
    """How many parts cover `size`. Triton's own is made for kernels too and takes longer than an allocation."""
    return -(-size // part)


def tile_of(inputs: int, most: int, least: int = 16) -> int:
    """The power of two that covers `inputs`, between `least` and `most`."""
    return min(most, max(least, 1 << (inputs - 1).bit_length()))


def factors_of(norm: Tensor | None, row: Tensor | None) -> int:
    """0: the values are the scores; 1: with norm; 2: with norm, row and column."""
    return 0 if norm is None else 1 if row is None else 2


def linear(
    kernel: Any,
    grid: tuple[int, ...],
    out: Tensor,
    operands: tuple[Tensor, ...],
    bias: Tensor | None,
    config: Config,
    *numbers: int,
    **constants: Any,
) -> Tensor:
    """Launch the kernel of a linear layer: it takes `out`, operands, bias and numbers in this order. Returns `out`."""
    kernel[grid](
        out,
        *operands,
        out if bias is None else bias,
        *numbers,
        **constants,
        HAS_BIAS=bias is not None,
        num_warps=config.warps,
        num_stages=config.stages,
    )
    return out
