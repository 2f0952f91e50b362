"""1-swaps against brute force over all pairs."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from crepe.masks import Matrix
from crepe.refine import swaps as module
from crepe.refine.optimal import optimal
from crepe.refine.rows import group_size, row_errors
from crepe.refine.swaps import strongest, swaps

MakeMatrix = Callable[..., Matrix]
CASES = [("unstructured", "row"), ("unstructured", "tensor"), ("2:4", "row"), ("4:8", "row")]


def _best_swap(matrix: Matrix, row: int, removable: Tensor) -> float:
    """The lowest error of `row` after one allowed swap, or after none, in float64."""
    dense, weight, gram = matrix.dense[row].double(), matrix.weight[row].double(), matrix.gram.double()
    group, lowest = group_size(matrix), math.inf
    for gone in removable[row].nonzero()[:, 0].tolist():
        for back in (~matrix.kept[row]).nonzero()[:, 0].tolist():
            if gone // group == back // group:
                candidate = weight.clone()
                candidate[gone], candidate[back] = 0.0, dense[back]
                lowest = min(lowest, float((dense - candidate) @ gram @ (dense - candidate)))
    return min(lowest, float((dense - weight) @ gram @ (dense - weight)))


@pytest.mark.parametrize(("pattern", "compare"), CASES)
@pytest.mark.parametrize("refitted", [False, True])
@pytest.mark.parametrize("percent", [0, 90])
def test_each_swap_is_the_best(
    make_matrix: MakeMatrix, monkeypatch: pytest.MonkeyPatch, pattern: str, compare: str, refitted: bool, percent: int
) -> None:
    monkeypatch.setattr(module, "MAX_SWAPS", 1)
    monkeypatch.setattr(module, "FROZEN_PERCENT", percent)
    matrix = make_matrix(pattern, compare, shape=(8, 24))
    matrix = optimal(matrix) if refitted else matrix
    removable = matrix.kept & ~strongest(matrix.score, matrix.kept, percent)
    found = row_errors(matrix.dense, swaps(matrix).weight, matrix.gram)
    wanted = [_best_swap(matrix, row, removable) for row in range(len(matrix.dense))]
    torch.testing.assert_close(found, torch.tensor(wanted, dtype=torch.float64), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(("pattern", "compare"), CASES)
def test_many_swaps_are_as_good_as_one_at_a_time(
    make_matrix: MakeMatrix, monkeypatch: pytest.MonkeyPatch, pattern: str, compare: str
) -> None:
    """What is updated from swap to swap is what a fresh start would find."""
    monkeypatch.setattr(module, "FROZEN_PERCENT", 0)
    matrix = make_matrix(pattern, compare, shape=(8, 48))
    monkeypatch.setattr(module, "MAX_SWAPS", 6)
    together = swaps(matrix)
    monkeypatch.setattr(module, "MAX_SWAPS", 1)
    for _ in range(6):
        matrix = swaps(matrix)
    assert torch.equal(together.kept, matrix.kept)


@pytest.mark.parametrize(("pattern", "compare"), CASES)
def test_ends_where_no_swap_helps(
    make_matrix: MakeMatrix, monkeypatch: pytest.MonkeyPatch, pattern: str, compare: str
) -> None:
    monkeypatch.setattr(module, "FROZEN_PERCENT", 0)
    found = swaps(make_matrix(pattern, compare, shape=(6, 24)))
    errors = row_errors(found.dense, found.weight, found.gram)
    lowest = [_best_swap(found, row, found.kept) for row in range(6)]
    torch.testing.assert_close(errors, torch.tensor(lowest, dtype=torch.float64), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("pattern", ["unstructured", "2:4"])
def test_the_strongest_stay(make_matrix: MakeMatrix, pattern: str) -> None:
    matrix = make_matrix(pattern, shape=(16, 64), tokens=80)
    frozen = strongest(matrix.score, matrix.kept, 90)
    found = swaps(matrix)
    assert not torch.equal(found.kept, matrix.kept)
    assert frozen.sum(1).tolist() == [28] * 16
    assert bool(found.kept[frozen].all())
    assert torch.equal(found.kept.sum(1), matrix.kept.sum(1))
    assert torch.equal(found.weight, matrix.dense * found.kept)


def test_strongest_against_sorting() -> None:
    score = torch.tensor([[5.0, 4.0, 3.0, 2.0, 9.0, 8.0], [1.0, 1.0, 1.0, 1.0, 1.0, 1.0]])
    kept = torch.tensor([[True, True, True, True, False, False], [True, True, True, False, False, False]])
    assert strongest(score, kept, 50).tolist() == [
        [True, True, False, False, False, False],
        [True, False, False, False, False, False],
    ]


@pytest.mark.parametrize("sparsity", [0.0, 0.9])
def test_rows_with_nothing_to_swap(make_matrix: MakeMatrix, sparsity: float) -> None:
    matrix = make_matrix(sparsity=sparsity)
    kept = matrix.kept.clone()
    kept[0], kept[1] = False, True
    found = swaps(matrix.with_mask(kept))
    assert torch.equal(found.kept[:2], kept[:2])
    assert torch.equal(found.kept.sum(1), kept.sum(1))


def test_batches_of_rows_change_nothing(make_matrix: MakeMatrix, monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = make_matrix(compare="tensor", shape=(16, 64))
    whole = swaps(matrix)
    monkeypatch.setattr(module, "_BUDGET", {"cpu": 1, "cuda": 1})
    assert torch.equal(swaps(matrix).kept, whole.kept)
    assert torch.equal(swaps(replace(matrix, dense=matrix.dense.T.contiguous().T)).kept, whole.kept)
