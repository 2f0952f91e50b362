"""Small matrices with correlated inputs for the tests of refinements."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from crepe.masks import Matrix, parse_pattern

MakeMatrix = Callable[..., Matrix]


def _matrix(
    pattern: str = "unstructured",
    compare: str = "row",
    sparsity: float = 0.5,
    shape: tuple[int, int] = (12, 32),
    tokens: int = 200,
    dead: tuple[int, ...] = (),
    seed: int = 0,
) -> Matrix:
    """A Wanda mask on random weights. tokens below shape[1] make the Gram matrix singular; dead: channels of zeros."""
    generator = torch.Generator().manual_seed(seed)
    inputs = shape[1]
    dense = torch.randn(shape, generator=generator)
    mixing = torch.randn(inputs, inputs, generator=generator) / inputs**0.5 + torch.eye(inputs)
    offset = torch.randn(inputs, generator=generator) * 0.3
    x = torch.randn(tokens, inputs, generator=generator) @ mixing + offset
    x[:, list(dead)] = 0.0
    gram = x.T @ x
    statistics = {"gram": gram, "norm": gram.diagonal().sqrt(), "mean": x.mean(0), "tokens": torch.tensor(tokens)}
    chosen = parse_pattern(pattern)
    score = dense.abs() * statistics["norm"]
    wanted = chosen.fixed_sparsity if chosen.fixed_sparsity is not None else sparsity
    kept = chosen.select(score, wanted, compare)
    return Matrix(dense, dense * kept, kept, score, statistics, chosen, wanted, compare)


@pytest.fixture(scope="session")
def make_matrix() -> MakeMatrix:
    return _matrix
