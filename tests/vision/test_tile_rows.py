"""The order of rows: never worse, exact on hidden clusters, optimal against brute force on tiny matrices."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from crepe.masks.colblock import ColBlock
from crepe.vision.column_blocks import balanced
from crepe.vision.tile_rows import row_order


def _energy(matrix: Tensor, pattern: ColBlock, keep: int, order: Tensor) -> float:
    ordered = matrix[order]
    return float((ordered * balanced(ordered, pattern, keep)).square().sum())


@given(st.integers(2, 20), st.integers(1, 5), st.integers(0, 100))
@settings(max_examples=30, deadline=None)
def test_the_order_is_a_permutation_and_never_worse(out: int, keep: int, seed: int) -> None:
    matrix = torch.randn(out, 12, generator=torch.Generator().manual_seed(seed))
    pattern = ColBlock(4, 2)
    order = row_order(matrix, pattern, keep)
    assert order.sort().values.tolist() == list(range(out))
    before = _energy(matrix, pattern, keep, torch.arange(out))
    assert _energy(matrix, pattern, keep, order) >= before * (1 - 1e-6)


def test_hidden_clusters_of_rows_are_found() -> None:
    generator = torch.Generator().manual_seed(0)
    matrix = torch.zeros(24, 16)
    cluster = torch.arange(3).repeat(8)[torch.randperm(24, generator=generator)]
    for row, which in enumerate(cluster.tolist()):
        matrix[row, 4 * which : 4 * which + 4] = torch.randn(4, generator=generator)
    order = row_order(matrix, ColBlock(8, 2), 2)
    assert [len(tile.unique()) for tile in cluster[order].split(8)] == [1, 1, 1]


def test_it_comes_close_to_the_best_of_all_orders() -> None:
    shares = []
    for seed in range(6):
        matrix = torch.randn(6, 6, generator=torch.Generator().manual_seed(seed))
        pattern = ColBlock(3, 1)
        tiles = (torch.tensor([0, *two]) for two in itertools.combinations(range(1, 6), 2))
        best = max(
            _energy(matrix, pattern, 2, torch.cat([tile, torch.tensor([i for i in range(6) if i not in tile])]))
            for tile in tiles
        )
        shares.append(_energy(matrix, pattern, 2, row_order(matrix, pattern, 2)) / best)
    assert min(shares) > 0.9 and max(shares) == pytest.approx(1.0)
