"""What refinements that work row by row share: the error of each row, keeping the better row, and batches of rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from crepe.masks.matrix import Matrix
from crepe.masks.mixed import Dense
from crepe.masks.pattern import Compare, NofM, Pattern, Unstructured
from crepe.masks.structured import Structured


def row_errors(dense: Tensor, weight: Tensor, gram: Tensor) -> Tensor:
    """d G d^T for every row d of dense - weight. dense, weight: (out, in); gram: (in, in). Returns (out,) float64."""
    lost = dense - weight
    return ((lost @ gram) * lost).sum(-1, dtype=torch.float64)


def keep_better(before: Matrix, after: Matrix) -> Matrix:
    """`after`, with the mask and weights of `before` in every row whose error did not fall (NaN has not fallen).

    Where the mask is another and a pattern ties rows, as column blocks do, or the rows of `after` keep other counts
    than those of `before`, rows of one cannot stand beside rows of the other: then the matrix with the lower error is
    taken whole.
    """
    old = row_errors(before.dense, before.weight, before.gram)
    new = row_errors(before.dense, after.weight, before.gram)
    alone = isinstance(before.pattern, Unstructured | NofM) and torch.equal(before.kept.sum(1), after.kept.sum(1))
    if alone or torch.equal(before.kept, after.kept):
        fallen = (new < old)[:, None]
    else:
        fallen = new.sum() < old.sum()
    kept = torch.where(fallen, after.kept, before.kept)
    return replace(after, kept=kept, weight=torch.where(fallen, after.weight, before.weight))


def batches(rows: int, entries: int, budget: int) -> Iterator[slice]:
    """Slices of `rows` rows such that a batch with `entries` numbers for each row stays within `budget` numbers."""
    size = max(budget // max(entries, 1), 1)
    for start in range(0, rows, size):
        yield slice(start, min(start + size, rows))


def group_size(matrix: Matrix) -> int:
    """Neighbours within which a weight may be exchanged for another: an N:M group, else the whole row."""
    return matrix.pattern.m if isinstance(matrix.pattern, NofM) else matrix.dense.shape[1]


def needs_single_weights(pattern: Pattern, compare: Compare) -> str | None:
    """The obstacle of refinements that choose among single weights."""
    if all(isinstance(option, Unstructured | NofM | Dense) for option in pattern.alternatives):
        return None
    return "it chooses among the single weights of a row; use it with 'unstructured' or N:M"


def needs_own_mask(pattern: Pattern, compare: Compare) -> str | None:
    """The obstacle of refinements that choose a mask of their own."""
    if isinstance(pattern, Structured):
        return "it chooses a mask of its own, and the matrices of a unit share theirs; use optimal, cg or refit"
    return None
