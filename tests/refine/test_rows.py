"""Errors by row, the better of two matrices, and batches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from crepe.masks import Matrix, output_error
from crepe.refine.optimal import optimal
from crepe.refine.rows import batches, keep_better, row_errors

MakeMatrix = Callable[..., Matrix]


def test_row_errors_add_up_to_the_output_error(make_matrix: MakeMatrix) -> None:
    matrix = make_matrix()
    errors = row_errors(matrix.dense, matrix.weight, matrix.gram)
    whole = row_errors(matrix.dense, torch.zeros_like(matrix.dense), matrix.gram).sum()
    assert float(errors.sum() / whole) == pytest.approx(output_error(matrix.dense, matrix.weight, matrix.gram))


def test_the_better_row_is_kept(make_matrix: MakeMatrix) -> None:
    matrix = make_matrix()
    worse_and_better = matrix.weight.clone()
    worse_and_better[0] *= 10
    worse_and_better[1] = matrix.dense[1]
    worse_and_better[2] = torch.nan
    found = keep_better(matrix, replace(matrix, weight=worse_and_better))
    assert torch.equal(found.weight[0], matrix.weight[0])
    assert torch.equal(found.weight[1], matrix.dense[1])
    assert torch.equal(found.weight[2:], matrix.weight[2:])


def test_other_counts_are_taken_whole_or_not_at_all(make_matrix: MakeMatrix) -> None:
    matrix = make_matrix()
    kept = torch.zeros_like(matrix.kept)
    kept[: len(kept) // 2] = True
    assert keep_better(matrix, matrix.with_mask(kept)).kept is not kept
    assert torch.equal(keep_better(matrix, matrix.with_mask(kept)).kept, matrix.kept)
    assert torch.equal(keep_better(matrix.with_mask(kept), matrix).kept, matrix.kept)


@pytest.mark.parametrize(("rows", "entries", "budget"), [(0, 3, 9), (10, 3, 9), (10, 100, 9), (4, 0, 0)])
def test_batches_cover_every_row_once(rows: int, entries: int, budget: int) -> None:
    found = [row for part in batches(rows, entries, budget) for row in range(rows)[part]]
    assert found == list(range(rows))
    assert all((part.stop - part.start) * entries <= max(budget, entries) for part in batches(rows, entries, budget))


def test_rows_of_one_mask_are_compared_one_by_one_under_any_pattern(make_matrix: MakeMatrix) -> None:
    """With another mask the rows of a tile hang together, with the same one nothing ties them."""
    good = optimal(make_matrix("colblock:4x4", "tensor", 0.5, (8, 16)))  # better in every row than nothing
    nothing = replace(good, weight=torch.zeros_like(good.weight))
    half = replace(good, weight=good.weight.clone())
    half.weight[4:] = torch.nan
    found = keep_better(nothing, half)
    assert torch.equal(found.weight[:4], good.weight[:4]) and not found.weight[4:].any()
