"""AlphaPruning: blocks whose weights have heavy-tailed spectra stay denser (Lu et al. 2024, arXiv 2410.10912)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from crepe.allocation.base import ALLOCATIONS, Allocation, Budget, Summary
from crepe.allocation.wishes import grant, only_values, to_unit_range
from crepe.masks.matrix import Matrix

# epsilon of the authors' scripts: sparsities range over (1 - epsilon .. 1 + epsilon) * eta.
EPSILON = 0.3


def tail_exponent(weight: Tensor) -> float | None:
    """PL_Alpha_Hill of the spectrum of W^T W: 1 + k / sum_{i=1..k} ln(lambda_{n-i+1} / lambda_{n-k}), k = n // 2.

    weight: (out, in) float32; lambda_1 <= ... <= lambda_n are its squared singular values, those that are zero to
    within rounding left out. None where the spectrum has no tail: too short, or all values equal.
    """
    try:
        singular = torch.linalg.svdvals(weight).double()
    except RuntimeError:  # it does not converge in float32
        singular = torch.linalg.svdvals(weight.double().cpu())
    rounding = torch.finfo(torch.float32).eps * max(weight.shape)
    logarithms = 2 * singular[singular > rounding * singular.max()].log()
    k = len(logarithms) // 2
    if k < 1:
        return None
    tail = float((logarithms[:k] - logarithms[k]).sum())
    return 1 + k / tail if tail > k * rounding else None


def mean_exponent(matrices: Mapping[str, Matrix], budget: Budget) -> dict[str, Summary]:
    """The mean exponent of the block for each of its tensors; empty where none has one."""
    found = [alpha for matrix in matrices.values() if (alpha := tail_exponent(matrix.dense)) is not None]
    summary = (sum(found) / len(found),) if found else ()
    return dict.fromkeys(matrices, summary)


def alpha(summaries: Mapping[str, Summary], budget: Budget) -> dict[str, float]:
    """s_l = eta (alpha'_l (s2 - s1) + s1), alpha' = alpha scaled to 0..1, s1, s2 = 1 -+ epsilon; eta meets the budget.

    Unless the user's bounds say otherwise, a tensor keeps at least a quarter of what the target keeps: at high
    sparsities the formula would remove more than there is.
    """
    scaled = to_unit_range(only_values(summaries, budget))
    ratios = {name: 1 - EPSILON + 2 * EPSILON * a for name, a in scaled.items()}
    sizes = budget.sizes
    eta = budget.sparsity * sum(sizes.values()) / sum(sizes[name] * ratio for name, ratio in ratios.items())
    return grant({name: eta * ratio for name, ratio in ratios.items()}, budget)


ALLOCATIONS.add("alpha", Allocation(alpha, mean_exponent))
