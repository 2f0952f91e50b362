"""Conjugate gradients against the exact solution, and the error along the way."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from crepe.masks import Matrix, output_error
from crepe.refine.cg import cg, conjugate_gradients
from crepe.refine.gram import damped
from crepe.refine.optimal import least_squares
from crepe.refine.rows import row_errors

MakeMatrix = Callable[..., Matrix]


@pytest.mark.parametrize(("pattern", "compare"), [("unstructured", "row"), ("unstructured", "tensor"), ("4:8", "row")])
@pytest.mark.parametrize("tokens", [200, 20])
def test_reaches_the_exact_solution(make_matrix: MakeMatrix, pattern: str, compare: str, tokens: int) -> None:
    matrix = make_matrix(pattern, compare, tokens=tokens)
    gram = damped(matrix.gram)
    found = conjugate_gradients(matrix.dense, matrix.weight, matrix.kept, gram, iterations=500, tolerance=1e-7)
    exact = least_squares(matrix.dense, matrix.kept, matrix.gram)
    torch.testing.assert_close(found, exact, atol=2e-3, rtol=2e-3)
    reached, lowest = (row_errors(matrix.dense, weight, gram) for weight in (found, exact))
    torch.testing.assert_close(reached, lowest, rtol=1e-4, atol=1e-4)


def test_every_step_lowers_the_error_of_every_row(make_matrix: MakeMatrix) -> None:
    matrix = make_matrix(tokens=40)
    gram = damped(matrix.gram)
    before = row_errors(matrix.dense, matrix.weight, gram)
    for steps in range(1, 12):
        weight = conjugate_gradients(matrix.dense, matrix.weight, matrix.kept, gram, steps, tolerance=0.0)
        after = row_errors(matrix.dense, weight, gram)
        assert bool((after <= before * (1 + 1e-5)).all())
        before = after


def test_starts_from_the_weights_as_they_are(make_matrix: MakeMatrix) -> None:
    matrix = make_matrix()
    exact = matrix.with_mask(matrix.kept, least_squares(matrix.dense, matrix.kept, matrix.gram))
    torch.testing.assert_close(cg(exact).weight, exact.weight, atol=1e-4, rtol=1e-4)


def test_a_finished_row_takes_no_step(make_matrix: MakeMatrix) -> None:
    matrix = make_matrix()
    kept = matrix.kept.clone()
    kept[0], kept[1] = True, False
    found = cg(matrix.with_mask(kept))
    assert torch.equal(found.weight[0], matrix.dense[0])
    assert not found.weight[1].any()


def test_default_comes_close_to_the_exact_error(make_matrix: MakeMatrix) -> None:
    matrix = make_matrix(shape=(24, 96), tokens=150)
    exact = least_squares(matrix.dense, matrix.kept, matrix.gram)
    reached = output_error(matrix.dense, cg(matrix).weight, matrix.gram)
    assert reached == pytest.approx(output_error(matrix.dense, exact, matrix.gram), rel=0.01)
