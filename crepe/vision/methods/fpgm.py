"""FPGM: filters near the geometric median of their layer can be replaced by the others (He et al. 2019, eq. 6)."""

from __future__ import annotations

import torch
from torch import Tensor

from crepe.vision.methods.base import METHODS, FilterPart, Layer, Method, largest


def median_score(matrix: Tensor) -> Tensor:
    """sum_j ||F_i - F_j||_2. matrix: (out, K); returns (out,)."""
    return torch.cdist(matrix, matrix, compute_mode="donot_use_mm_for_euclid_dist").sum(1)


def select(layer: Layer, keep: int) -> Tensor:
    return largest(median_score(layer.matrix), keep)


METHODS.add("fpgm", Method((FilterPart(select),)))
