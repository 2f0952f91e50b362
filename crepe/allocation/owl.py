"""OWL: blocks with many outlying scores stay denser (Yin et al. 2024, arXiv 2310.05175)."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from crepe.allocation.base import ALLOCATIONS, Allocation, Budget, Summary
from crepe.allocation.wishes import grant, only_values, to_unit_range
from crepe.masks.matrix import Matrix

# M and lambda of the paper, the values of the authors' scripts for unstructured pruning.
OUTLIER = 5.0
LAMBDA = 0.08


def outlier_share(matrices: Mapping[str, Matrix], budget: Budget) -> dict[str, Summary]:
    """d = share of the scores of the block that are larger than M * the mean score of the block; for each tensor."""
    scores = [matrix.score for matrix in matrices.values()]
    count = sum(score.numel() for score in scores)
    mean = sum(float(score.sum(dtype=torch.float64)) for score in scores) / count
    outliers = sum(int(torch.count_nonzero(score > OUTLIER * mean)) for score in scores)
    return dict.fromkeys(matrices, (outliers / count,))


def owl(summaries: Mapping[str, Summary], budget: Budget) -> dict[str, float]:
    """S_l = S - 2 lambda (d'_l - mean d'), d' = d scaled to 0..1 over all blocks, as in the authors' code.

    All sparsities lie within a range of 2 lambda, which is the only limit besides the user's bounds.
    """
    scaled = to_unit_range(only_values(summaries, budget))
    mean = sum(scaled.values()) / len(scaled)
    return grant({name: budget.sparsity - 2 * LAMBDA * (d - mean) for name, d in scaled.items()}, budget)


ALLOCATIONS.add("owl", Allocation(owl, outlier_share))
