"""The exact weights for a mask against a solver that sees the inputs, not their Gram matrix."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from crepe.masks import Matrix, output_error
from crepe.refine import optimal as module
from crepe.refine.gram import damped
from crepe.refine.optimal import least_squares, optimal

MakeMatrix = Callable[..., Matrix]


def _reference(matrix: Matrix) -> Tensor:
    """Row by row in float64: the least squares over the kept columns of inputs whose Gram matrix is the damped one."""
    inputs = torch.linalg.cholesky(damped(matrix.gram).double()).T
    result = torch.zeros_like(matrix.dense, dtype=torch.float64)
    for row, (weight, kept) in enumerate(zip(matrix.dense.double(), matrix.kept, strict=True)):
        result[row, kept] = torch.linalg.lstsq(inputs[:, kept], inputs @ weight).solution
    return result


@pytest.mark.parametrize(("pattern", "compare"), [("unstructured", "row"), ("unstructured", "tensor"), ("2:4", "row")])
@pytest.mark.parametrize("tokens", [200, 20])
def test_against_lstsq(make_matrix: MakeMatrix, pattern: str, compare: str, tokens: int) -> None:
    matrix = make_matrix(pattern, compare, tokens=tokens)
    found = least_squares(matrix.dense, matrix.kept, matrix.gram)
    torch.testing.assert_close(found.double(), _reference(matrix), atol=2e-4, rtol=2e-4)


def test_batches_of_rows_change_nothing(make_matrix: MakeMatrix, monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = make_matrix(compare="tensor")
    whole = least_squares(matrix.dense, matrix.kept, matrix.gram)
    monkeypatch.setattr(module, "_BUDGET", 1)
    torch.testing.assert_close(least_squares(matrix.dense, matrix.kept, matrix.gram), whole, atol=1e-5, rtol=1e-5)


def test_rows_that_keep_all_or_nothing(make_matrix: MakeMatrix) -> None:
    matrix = make_matrix()
    kept = matrix.kept.clone()
    kept[0], kept[1] = False, True
    found = least_squares(matrix.dense, kept, matrix.gram)
    assert not found[0].any()
    assert torch.equal(found[1], matrix.dense[1])
    assert not least_squares(matrix.dense, torch.zeros_like(kept), matrix.gram).any()


def test_lowers_the_error(make_matrix: MakeMatrix) -> None:
    matrix = make_matrix()
    before = output_error(matrix.dense, matrix.weight, matrix.gram)
    assert output_error(matrix.dense, optimal(matrix).weight, matrix.gram) < 0.8 * before
