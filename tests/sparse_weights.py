"""Random packed weights for tests of kernels, and their exact products."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from crepe.kernels.reference import colblock, sp24
from crepe.masks import ColBlock, NofM

# How many tokens of a 2:4 layer which backend serves.
SP24_CHOICES = [
    (1, "matvec"),
    (3, "matvec"),
    (4, "mma"),
    (32, "mma"),
    (33, "matmul"),
    (64, "matmul"),
    (65, "unpack"),
]


def weight_of(outputs: int, inputs: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    return torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(seed)).to(dtype)


def sp24_weight(outputs: int, inputs: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """values and meta, with groups that keep one weight or none, and a kept -0.0."""
    weight = weight_of(outputs, inputs, dtype)
    kept = NofM(2, 4).select(weight.float().abs(), 0.5)
    kept &= torch.rand(kept.shape, generator=torch.Generator().manual_seed(1)) > 0.2
    kept[0, :8] = False
    values, meta = sp24.pack(weight, kept)
    values[-1, -1] = -0.0
    return values, meta


def colblock_weight(
    outputs: int, inputs: int, pattern: ColBlock, dtype: torch.dtype, sparsity: float = 0.5
) -> tuple[Tensor, Tensor]:
    """values and blocks."""
    weight = weight_of(outputs, inputs, dtype)
    return colblock.pack(weight, pattern.select(weight.float().abs(), sparsity), pattern)


def strided(argument: Any) -> Any:
    """A tensor of the same values that is not contiguous; anything else as it is."""
    if not isinstance(argument, Tensor):
        return argument
    if argument.dim() == 1:
        return argument.repeat_interleave(2)[::2]
    return argument.transpose(-1, -2).contiguous().transpose(-1, -2)


def exact(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The product in float64."""
    return torch.nn.functional.linear(x.double(), weight.double(), None if bias is None else bias.double())


def assert_close(found: Tensor, expected: Tensor, slack: float = 0.0) -> None:
    """Equal but for the last bit of the found dtype; `slack` in units of the size of a typical entry.

    A whole last bit and not half of one, because Triton's interpreter cuts bfloat16 instead of rounding.
    """
    last = {torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}[found.dtype]
    typical = float(expected.abs().mean())
    torch.testing.assert_close(found.double(), expected, rtol=last, atol=typical * (slack + 2.0**-12))


@contextmanager
def poisoned() -> Iterator[None]:
    """Tensors are allocated full of NaN, so that an output which a kernel leaves out is seen."""
    before = torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.utils.deterministic.fill_uninitialized_memory = before[1]
