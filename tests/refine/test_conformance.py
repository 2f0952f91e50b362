"""What every refinement of a matrix promises, whatever it does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from crepe.masks import Matrix, NofM, output_error, parse_pattern
from crepe.masks.pattern import Compare
from crepe.refine import REFINEMENTS, Refinement

MakeMatrix = Callable[..., Matrix]
CASES: list[tuple[str, Compare]] = [
    ("unstructured", "tensor"),
    ("unstructured", "row"),
    ("2:4", "row"),
    ("4:8", "tensor"),
    ("colblock:8x8", "tensor"),
]
# A share of the output below which an error cannot be told from the rounding of float32.
ROUNDING = 1e-6
# Greedy from the dense weights, whatever mask it is given: the pipeline puts that mask back where it was better.
GUARDED_BY_THE_PIPELINE = {"sparsegpt"}


def _fitting() -> list[tuple[str, str, Compare]]:
    found = []
    for name in REFINEMENTS.names():
        entry = REFINEMENTS.get(name)
        if isinstance(entry, Refinement):
            found += [
                (name, text, compare) for text, compare in CASES if not entry.obstacle(parse_pattern(text), compare)
            ]
    return found


every = pytest.mark.parametrize(("name", "pattern", "compare"), _fitting())


def _check(name: str, before: Matrix, after: Matrix) -> None:
    """before: in the model's column order; after: in any."""
    assert after.weight.dtype == torch.float32 and after.kept.dtype == torch.bool
    assert after.weight.shape == after.kept.shape == before.dense.shape
    assert torch.isfinite(after.weight).all()
    assert after.pattern == before.pattern and after.pattern.violations(after.kept) == 0
    assert not after.weight[~after.kept].any()
    assert int(after.kept.sum()) == int(before.kept.sum())
    if before.compare == "row" or isinstance(before.pattern, NofM):
        assert torch.equal(after.kept.sum(1), before.kept.sum(1))
    model_order = after.in_model_order()
    assert torch.equal(model_order.dense, before.dense) and torch.equal(model_order.gram, before.gram)
    if name in GUARDED_BY_THE_PIPELINE:
        return
    found = output_error(before.dense, model_order.weight, before.gram)
    assert found <= output_error(before.dense, before.weight, before.gram) * (1 + 1e-4) + ROUNDING


def _refine(name: str, matrix: Matrix) -> Matrix:
    after = REFINEMENTS.get(name).function(matrix)
    assert isinstance(after, Matrix)
    return after


@every
@pytest.mark.parametrize(("shape", "sparsity"), [((24, 64), 0.5), ((16, 40), 0.7), ((1, 8), 0.25), ((40, 16), 0.5)])
def test_promises(
    make_matrix: MakeMatrix, name: str, pattern: str, compare: str, shape: tuple[int, int], sparsity: float
) -> None:
    matrix = make_matrix(pattern, compare, sparsity, shape)
    _check(name, matrix, _refine(name, matrix))


@every
def test_fewer_tokens_than_channels(make_matrix: MakeMatrix, name: str, pattern: str, compare: str) -> None:
    for tokens in (1, 5, 30):
        matrix = make_matrix(pattern, compare, shape=(16, 64), tokens=tokens)
        _check(name, matrix, _refine(name, matrix))


@every
def test_dead_channels(make_matrix: MakeMatrix, name: str, pattern: str, compare: str) -> None:
    matrix = make_matrix(pattern, compare, shape=(16, 64), dead=(0, 5, 6, 7, 63))
    _check(name, matrix, _refine(name, matrix))
    nothing = make_matrix(pattern, compare, shape=(16, 64), dead=tuple(range(64)))
    _check(name, nothing, _refine(name, nothing))


@every
def test_after_other_weights(make_matrix: MakeMatrix, name: str, pattern: str, compare: str) -> None:
    """A refinement may follow another that has updated the weights."""
    matrix = make_matrix(pattern, compare, shape=(16, 64))
    updated = REFINEMENTS.get("optimal").function(matrix)
    after = _refine(name, updated)
    _check(name, replace(updated, weight=matrix.weight), after)


@every
def test_columns_in_another_order(make_matrix: MakeMatrix, name: str, pattern: str, compare: str) -> None:
    matrix = make_matrix(pattern, compare, shape=(16, 64))
    order = torch.randperm(64, generator=torch.Generator().manual_seed(1))
    moved = matrix.reordered(order)
    moved = moved.with_mask(moved.pattern.select(moved.score, moved.sparsity, moved.compare))
    after = _refine(name, moved)
    assert after.order is not None
    _check(name, moved.in_model_order(), after)


@every
def test_deterministic_and_pure(make_matrix: MakeMatrix, name: str, pattern: str, compare: str) -> None:
    matrix = make_matrix(pattern, compare, shape=(16, 64))
    tensors = ("dense", "weight", "kept", "score")
    copies = {key: getattr(matrix, key).clone() for key in tensors}
    statistics = {key: value.clone() for key, value in matrix.statistics.items()}
    first, second = _refine(name, matrix), _refine(name, matrix)
    assert torch.equal(first.weight, second.weight) and torch.equal(first.kept, second.kept)
    assert all(torch.equal(getattr(matrix, key), copy) for key, copy in copies.items())
    assert all(torch.equal(matrix.statistics[key], copy) for key, copy in statistics.items())


@every
def test_heavy_channels(make_matrix: MakeMatrix, name: str, pattern: str, compare: str) -> None:
    """Language models have channels a thousand times larger than the rest."""
    matrix = make_matrix(pattern, compare, shape=(16, 64))
    scale = torch.ones(64)
    scale[[2, 40]] = 1000.0
    statistics = {
        **matrix.statistics,
        "gram": matrix.gram * scale * scale[:, None],
        "norm": matrix.statistics["norm"] * scale,
        "mean": matrix.statistics["mean"] * scale,
    }
    score = matrix.dense.abs() * statistics["norm"]
    heavy = replace(matrix, statistics=statistics, score=score)
    heavy = heavy.with_mask(heavy.pattern.select(score, heavy.sparsity, heavy.compare))
    _check(name, heavy, _refine(name, heavy))
