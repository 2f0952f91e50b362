"""SparseGPT against the algorithm written down naively, exact counts, and error never higher than of its own mask."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from crepe.masks import Matrix, NofM, Pattern, Unstructured, kept_count, output_error, parse_pattern
from crepe.refine.gram import damped
from crepe.refine.sparsegpt import DAMPING, sparsegpt


def _matrix(
    pattern: Pattern, sparsity: float = 0.5, out: int = 12, inputs: int = 160, compare: str = "tensor"
) -> Matrix:
    source = torch.Generator().manual_seed(0)
    dense = torch.randn(out, inputs, generator=source)
    tokens = torch.randn(400, inputs, generator=source) @ torch.randn(inputs, inputs, generator=source)
    score = dense.abs()
    kept = pattern.select(score, sparsity, compare)  # type: ignore[arg-type]
    statistics = {"gram": tokens.T @ tokens}
    return Matrix(dense, dense * kept, kept, score, statistics, pattern, sparsity, compare)  # type: ignore[arg-type]


def _naive(dense: Tensor, gram: Tensor, n: int, m: int) -> Tensor:
    """Column by column in float64, each time with the inverse of what is left; no blocks, no Cholesky factor."""
    weight, remaining = dense.double().clone(), damped(gram, DAMPING).double()
    for j in range(weight.shape[1]):
        if j % m == 0:
            lost = []
            for column in range(m):
                # What U_jj^2 stands for: the inverse of the matrix of columns j.. at its first place.
                inverse = torch.linalg.inv(remaining[j + column :, j + column :])
                lost.append(weight[:, j + column].square() / inverse[0, 0])
            kept = torch.zeros(len(weight), m, dtype=torch.bool)
            kept.scatter_(1, torch.stack(lost, 1).topk(n, dim=1).indices, True)
        inverse = torch.linalg.inv(remaining[j:, j:])
        error = torch.where(kept[:, j % m], 0.0, weight[:, j]) / inverse[0, 0]
        weight[:, j:] -= error[:, None] * inverse[0]
        weight[~kept[:, j % m], j] = 0.0
    return weight


def test_matches_the_naive_algorithm() -> None:
    matrix = _matrix(NofM(2, 4), inputs=40)
    expected = _naive(matrix.dense, matrix.gram, 2, 4)
    torch.testing.assert_close(sparsegpt(matrix).weight.double(), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("inputs", [40, 160, 320])
@pytest.mark.parametrize("pattern", ["unstructured", "2:4", "4:20"])
def test_counts_are_exact_and_the_error_is_lower(pattern: str, inputs: int) -> None:
    parsed = parse_pattern(pattern)
    sparsity = parsed.fixed_sparsity or 0.57
    matrix = _matrix(parsed, sparsity, inputs=inputs)
    found = sparsegpt(matrix)
    assert int(found.kept.sum()) == kept_count(matrix.dense.numel(), sparsity)
    assert parsed.violations(found.kept) == 0
    assert not bool(found.weight[~found.kept].any())
    masked = output_error(matrix.dense, matrix.dense * found.kept, matrix.gram)
    assert output_error(matrix.dense, found.weight, matrix.gram) < masked


def test_rows_that_compete_by_themselves_keep_the_same_number() -> None:
    found = sparsegpt(_matrix(Unstructured(), 0.53, compare="row"))
    assert found.kept.sum(1).tolist() == [kept_count(160, 0.53)] * 12


def test_dead_channels_lose_their_weights_and_nothing_else() -> None:
    matrix = _matrix(Unstructured())
    gram = matrix.gram.clone()
    gram[5] = gram[:, 5] = 0.0
    found = sparsegpt(Matrix(**{**vars(matrix), "statistics": {"gram": gram}}))
    assert not bool(found.weight[:, 5].any()) and bool(torch.isfinite(found.weight).all())
