"""The sums of |W| that relative scores need: plain torch on the CPU, kernels that read the weight once on a GPU.

On a GPU the reference of each operation is its definition (`crepe.kernels.reference.sums`): sums of rows and columns
are added in float64 and rounded once, windows are added row by row in float32. Kernel and reference give the same
bytes, so the masks do not depend on which of them ran. The CPU adds rows and columns in float32 in the order of torch,
which differs in the last bits (docs/kernels.md has how far).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def absolute_sums(weight: Tensor) -> tuple[Tensor, Tensor]:
    """sum_j |W_ij| (out,) and sum_i |W_ij| (in,), float32. weight: (out, in)."""
    if on_gpu(weight):
        rows, columns = _run("absolute_sums", weight)
        return rows, columns
    size = weight.float().abs()
    return size.sum(1), size.sum(0)


def box_mean(weight: Tensor, kernel: int) -> Tensor:
    """Mean of |W| over the k x k window around each entry, centre included, windows cut at the border.

    weight: (out, in) -> (out, in) float32.
    """
    if on_gpu(weight):
        found: Tensor = _run("box_mean", weight, kernel)
        return found
    size = weight.float().abs()[None, None]
    return torch.nn.functional.avg_pool2d(size, kernel, 1, kernel // 2, count_include_pad=False)[0, 0]


def on_gpu(tensor: Tensor) -> bool:
    return tensor.is_cuda


def _run(operation: str, weight: Tensor, *numbers: int) -> Any:
    from crepe.kernels.dispatch import OPERATIONS

    return OPERATIONS.get(operation).run(weight.contiguous(), *numbers)
