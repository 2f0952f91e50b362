"""Sums over |W| that relative scores need: of every row, of every column, and of the window around every weight."""

from __future__ import annotations

import torch
from torch import Tensor


def absolute_sums(weight: Tensor) -> tuple[Tensor, Tensor]:
    """sum_j |W_ij| (out,) and sum_i |W_ij| (in,), float32. weight: (out, in).

    Added in float64 and rounded once, so that the order in which a device adds does not show in the result.
    """
    size = weight.abs()
    return size.sum(1, dtype=torch.float64).float(), size.sum(0, dtype=torch.float64).float()


def box_mean(weight: Tensor, kernel: int) -> Tensor:
    """Mean of |W| over the kernel x kernel window around each entry, (out, in) float32; `kernel` is odd.

    The centre is included and windows are cut at the border. The entries of a window are added row by row in float32.
    """
    size = weight.float().abs()[None, None]
    return torch.nn.functional.avg_pool2d(size, kernel, 1, kernel // 2, count_include_pad=False)[0, 0]
