"""What all selections share: their kernels read a weight and the factors of its score, see `reference.selection`."""

from __future__ import annotations

import torch
from torch import Tensor

from crepe.kernels.dispatch import triton_obstacle

DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def weight_obstacle(weight: Tensor) -> str | None:
    """Why no kernel can read this weight."""
    reason = triton_obstacle(weight)
    if reason:
        return reason
    if weight.dtype not in DTYPES:
        return f"the weight is {weight.dtype}"
    if weight.dim() != 2 or not weight.numel():
        return f"the weight has shape {tuple(weight.shape)} instead of (out, in)"
    return None if weight.is_contiguous() else "the weight is not contiguous"


def score_obstacle(values: Tensor, norm: Tensor | None, row: Tensor | None, column: Tensor | None) -> str | None:
    """Why no kernel can compute this score."""
    reason = weight_obstacle(values)
    if reason:
        return reason
    if (row is None) != (column is None) or (norm is None and row is not None):
        return "a score has no factor, norm alone, or norm, row and column"
    outputs, inputs = values.shape
    for name, factor, length in (("norm", norm, inputs), ("row", row, outputs), ("column", column, inputs)):
        if factor is not None and (tuple(factor.shape) != (length,) or factor.dtype != torch.float32):
            return f"{name} is {tuple(factor.shape)} of {factor.dtype} instead of ({length},) of torch.float32"
        if factor is not None and not (factor.is_contiguous() and factor.device == values.device):
            return f"{name} is not contiguous or on another device"
    return None
