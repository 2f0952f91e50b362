"""Selection of the weights of one matrix: plain torch on the CPU, kernels on a GPU, and the same masks.

The kernels are asked through their dispatcher, which runs the torch reference where none of them fits.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from crepe.criteria import Coefficients, Criterion, factors
from crepe.criteria.sums import on_gpu
from crepe.masks import NofM, Pattern, Unstructured, kept_count
from crepe.masks.pattern import Compare


def by_score(pattern: Pattern, score: Tensor, sparsity: float, compare: Compare) -> Tensor:
    """The mask of `pattern.select`. score: (out, in) float32."""
    operation = _operation(pattern, tuple(score.shape), sparsity, compare)
    if operation is None or not on_gpu(score):
        return pattern.select(score, sparsity, compare)
    return _run(*operation, score)


def at_once(
    criterion: Criterion,
    pattern: Pattern,
    weight: Tensor,
    statistics: Mapping[str, Tensor],
    coefficients: Coefficients,
    sparsity: float,
    compare: Compare,
    name: str,
) -> Tensor | None:
    """The mask of scoring and selecting `weight` (out, in) in one read of it, on a GPU; None where that cannot be:
    the score does not separate into factors, or the pattern is none that a kernel selects."""
    operation = _operation(pattern, tuple(weight.shape), sparsity, compare)
    if operation is None or not on_gpu(weight):
        return None
    weight = weight.contiguous()
    found = factors(criterion, weight, statistics, coefficients, name)
    return None if found is None else _run(*operation, weight, found.norm, found.row, found.column)


def _run(
    operation: str,
    numbers: tuple[int, ...],
    values: Tensor,
    norm: Tensor | None = None,
    row: Tensor | None = None,
    column: Tensor | None = None,
) -> Tensor:
    from crepe.kernels.dispatch import OPERATIONS

    kept: Tensor = OPERATIONS.get(operation).run(values.contiguous(), *numbers, norm, row, column)
    return kept


def _operation(
    pattern: Pattern, shape: tuple[int, ...], sparsity: float, compare: Compare
) -> tuple[str, tuple[int, ...]] | None:
    """The operation that selects `pattern` in a matrix of `shape` (out, in), and its numbers."""
    if isinstance(pattern, NofM):
        return "select_n_of_m", (pattern.n, pattern.m)
    if isinstance(pattern, Unstructured) and compare == "row":
        return "select_by_row", (kept_count(shape[1], sparsity),)
    if isinstance(pattern, Unstructured):
        return "select_overall", (kept_count(shape[0] * shape[1], sparsity),)
    return None
