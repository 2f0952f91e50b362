"""DSnoT against a naive loop over rows and cycles in float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from crepe.masks import Matrix
from crepe.refine import dsnot as module
from crepe.refine.dsnot import CYCLES, THRESHOLD, dsnot
from crepe.refine.rows import group_size, row_errors

MakeMatrix = Callable[..., Matrix]
CASES = [("unstructured", "row"), ("unstructured", "tensor"), ("2:4", "row"), ("4:8", "row")]


def _reference(matrix: Matrix, row: int) -> Tensor:
    """The mask of one row after all cycles, before rows that became worse are put back."""
    weight, mean = matrix.dense[row].double(), matrix.statistics["mean"].double()
    tokens, diagonal = int(matrix.statistics["tokens"]), matrix.gram.diagonal().double()
    variance, group = diagonal / tokens - mean**2, group_size(matrix)
    kept = matrix.kept[row].tolist()
    touched: set[int] = set()
    error = float((weight * mean)[~matrix.kept[row]].sum())
    for _ in range(CYCLES):
        if abs(error) <= THRESHOLD:
            break
        sign = 1 if error > 0 else -1
        effect = (weight * mean * sign).tolist()
        prunable = [i for i in range(len(kept)) if kept[i] and i not in touched and effect[i] < 0]
        growable = [
            j
            for j in range(len(kept))
            if not kept[j] and j not in touched and effect[j] > 0 and any(i // group == j // group for i in prunable)
        ]
        if not growable:
            break
        grown = max(growable, key=lambda j: effect[j] / float(variance[j]))
        inside = [i for i in prunable if i // group == grown // group]
        pruned = min(inside, key=lambda i: float(weight[i].abs() * diagonal[i].sqrt()))
        after = error + sign * (effect[pruned] - effect[grown])
        if abs(after) >= abs(error):
            break
        kept[grown], kept[pruned], error = True, False, after
        touched |= {grown, pruned}
    return torch.tensor(kept)


@pytest.mark.parametrize(("pattern", "compare"), CASES)
def test_against_the_naive_loop(
    make_matrix: MakeMatrix, monkeypatch: pytest.MonkeyPatch, pattern: str, compare: str
) -> None:
    monkeypatch.setattr(module, "keep_better", lambda before, after: after)
    matrix = make_matrix(pattern, compare, shape=(12, 48))
    wanted = torch.stack([_reference(matrix, row) for row in range(12)])
    found = dsnot(matrix)
    assert not torch.equal(wanted, matrix.kept)
    assert torch.equal(found.kept, wanted)
    assert torch.equal(found.kept.sum(1), matrix.kept.sum(1))
    assert torch.equal(found.weight, matrix.dense * found.kept)


@pytest.mark.parametrize(("pattern", "compare"), CASES)
def test_brings_the_expected_error_down(
    make_matrix: MakeMatrix, monkeypatch: pytest.MonkeyPatch, pattern: str, compare: str
) -> None:
    monkeypatch.setattr(module, "keep_better", lambda before, after: after)
    matrix = make_matrix(pattern, compare, shape=(12, 48))

    def expected(weight: Tensor) -> Tensor:
        return ((matrix.dense - weight) @ matrix.statistics["mean"]).abs()

    assert float(expected(dsnot(matrix).weight).mean()) < 0.4 * float(expected(matrix.weight).mean())


def test_no_row_becomes_worse(make_matrix: MakeMatrix) -> None:
    matrix = make_matrix(shape=(40, 48))
    found = dsnot(matrix)
    before, after = (row_errors(matrix.dense, weight, matrix.gram) for weight in (matrix.weight, found.weight))
    changed = (found.kept != matrix.kept).any(1)
    assert bool((after[changed] < before[changed]).all()) and 0 < int(changed.sum()) < 40


def test_no_mean_no_swap(make_matrix: MakeMatrix) -> None:
    matrix = make_matrix()
    statistics = {**matrix.statistics, "mean": torch.zeros(32)}
    assert torch.equal(dsnot(replace(matrix, statistics=statistics)).kept, matrix.kept)


def test_updated_weights_stay(make_matrix: MakeMatrix) -> None:
    matrix = make_matrix(shape=(40, 48))
    matrix = matrix.with_mask(matrix.kept, matrix.weight * 1.01)
    found = dsnot(matrix)
    still = found.kept & matrix.kept
    assert torch.equal(found.weight[still], matrix.weight[still])
