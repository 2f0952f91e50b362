"""Weights that make selection hard, with the factors of their scores: for tests of kernels."""

from __future__ import annotations

import torch
from torch import Tensor

Factors = tuple[Tensor | None, Tensor | None, Tensor | None]
FORMS = ("values", "norm", "all")


def hard_weight(outputs: int, inputs: int, dtype: torch.dtype, device: str = "cpu") -> Tensor:
    """Many ties, zeros of both signs, an empty row, a row of one value, infinities."""
    generator = torch.Generator().manual_seed(outputs * inputs)
    weight = (torch.randn(outputs, inputs, generator=generator) * 4).round() / 4
    weight[0, ::3] = -0.0
    weight[-1] = 0.0
    if outputs > 2:
        weight[1] = -1.5
        weight[2, 1::7] = torch.inf
        weight[2, 2::7] = -torch.inf
    return weight.to(device, dtype)


def factors(form: str, outputs: int, inputs: int, device: str = "cpu") -> Factors:
    generator = torch.Generator().manual_seed(inputs)
    norm, column = (torch.rand(inputs, generator=generator).to(device) + 0.1 for _ in range(2))
    row = torch.rand(outputs, generator=generator).to(device)
    column[0] = 0.0
    chosen: dict[str, Factors] = {"values": (None, None, None), "norm": (norm, None, None), "all": (norm, row, column)}
    return chosen[form]
