"""ADMM: its pieces, and its masks against those of other criteria after the same refit."""

from __future__ import annotations

from collections.abc import Callable
from statistics import mean

import pytest
import torch

from crepe.masks import Matrix, output_error
from crepe.refine.admm import _growth, _settled, _Solver, admm
from crepe.refine.gram import damped
from crepe.refine.optimal import optimal

MakeMatrix = Callable[..., Matrix]
CASES = [("unstructured", "row"), ("unstructured", "tensor"), ("2:4", "row"), ("4:8", "row")]


def test_inverse_for_any_rho(make_matrix: MakeMatrix) -> None:
    gram = make_matrix().gram
    for rho in (0.02, 0.1, 30.0):
        wanted = torch.linalg.inv(gram.double() + rho * torch.eye(32, dtype=torch.float64))
        torch.testing.assert_close(_Solver.of(gram).inverse(rho).double(), wanted, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize(("pattern", "compare"), CASES)
def test_better_than_the_exact_weights_of_other_masks(make_matrix: MakeMatrix, pattern: str, compare: str) -> None:
    """On average over seeds: Wanda and magnitude masks with their exact weights lose to the mask that ADMM finds."""
    wanda, magnitude, found = [], [], []
    for seed in range(6):
        matrix = make_matrix(pattern, compare, shape=(24, 64), seed=seed)
        kept = matrix.pattern.select(matrix.dense.abs(), matrix.sparsity, matrix.compare)
        for errors, result in (
            (wanda, optimal(matrix)),
            (magnitude, optimal(matrix.with_mask(kept))),
            (found, admm(matrix)),
        ):
            errors.append(output_error(matrix.dense, result.weight, matrix.gram))
    assert mean(found) < 0.95 * mean(wanda)
    assert mean(found) < 0.95 * mean(magnitude)


def test_near_the_best_mask_of_all(make_matrix: MakeMatrix) -> None:
    """One row, few columns: all masks can be tried."""
    ratios = []
    for seed in range(8):
        matrix = make_matrix(shape=(1, 10), seed=seed)
        gram = damped(matrix.gram)  # what both minimise
        lowest = min(
            output_error(matrix.dense, optimal(matrix.with_mask(kept)).weight, gram)
            for kept in torch.cartesian_prod(*[torch.tensor([False, True])] * 10)[:, None]
            if int(kept.sum()) == int(matrix.kept.sum())
        )
        ratios.append(output_error(matrix.dense, admm(matrix).weight, gram) / lowest)
    assert mean(ratios) < 1.3


def test_dead_channels_keep_nothing_from_others(make_matrix: MakeMatrix) -> None:
    matrix = make_matrix(dead=(3, 17, 30))
    assert not admm(matrix).kept[:, [3, 17, 30]].any()


def test_nothing_to_prune(make_matrix: MakeMatrix) -> None:
    matrix = make_matrix(sparsity=0.0)
    assert torch.equal(admm(matrix).weight, matrix.dense)


def test_schedule_of_the_penalty() -> None:
    assert [_growth(change) for change in (0.5, 0.05, 0.001)] == [1.3, 1.2, 1.1]
    assert _settled(0.0, True, 6) and not _settled(0.0, False, 6)
    assert _settled(0.0001, True, 33) and not _settled(0.0001, True, 30)
