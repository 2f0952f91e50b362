"""Magnitude: the size of the weight alone."""

from __future__ import annotations

import torch
from torch import Tensor

from crepe.criteria.base import CRITERIA, Criterion, Factors


def magnitude_score(weight: Tensor) -> Tensor:
    """S_ij = |W_ij|. weight: (out, in)."""
    return weight.abs()


CRITERIA.add(
    "magnitude",
    Criterion(
        lambda weight, statistics, coefficients: magnitude_score(weight),
        factors=lambda weight, statistics, coefficients: Factors(weight.new_ones(weight.shape[1], dtype=torch.float32)),
    ),
)
