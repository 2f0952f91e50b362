"""BCBP's steps: exact balance, thresholds against a naive one, recalibration, and the figure of imbalance."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from crepe.errors import CrepeError
from crepe.masks.colblock import ColBlock
from crepe.vision.column_blocks import balanced, block_norms, imbalance, kept_blocks, natural_shares, select_blocks


def _matrix(out: int, columns: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(out, columns, generator=torch.Generator().manual_seed(seed))


def test_norms_are_root_mean_squares_also_of_a_short_tile() -> None:
    matrix = _matrix(6, 8)
    norms = block_norms(matrix, ColBlock(4, 2))
    for tile, rows in enumerate((matrix[:4], matrix[4:])):
        for block in range(4):
            assert norms[tile, block] == pytest.approx(rows[:, 2 * block : 2 * block + 2].square().mean().sqrt())


@given(st.integers(0, 100), st.integers(0, 50))
@settings(max_examples=30, deadline=None)
def test_natural_shares_are_those_of_one_threshold(percent: int, seed: int) -> None:
    norms = {
        "a": block_norms(_matrix(8, 16, seed), ColBlock(4, 2)),
        "b": block_norms(_matrix(4, 32, seed + 1), ColBlock(4, 2)),
    }
    shares = natural_shares(norms, percent / 100)
    values = sorted(value for norm in norms.values() for value in norm.flatten().tolist())
    gone = set(values[: int(percent / 100 * 32 + 0.5)])
    for name, norm in norms.items():
        naive = [sum(value in gone for value in row) / len(row) for row in norm.tolist()]
        assert shares[name].tolist() == pytest.approx(naive)


def test_kept_blocks_are_rounded_and_never_reach_zero() -> None:
    shares = torch.tensor([0.2, 0.6])
    assert kept_blocks(shares, 16) == 10
    assert kept_blocks(shares, 16, step=4) == 8
    assert kept_blocks(torch.ones(3), 16, step=4) == 4
    assert kept_blocks(torch.zeros(3), 18, step=4) == 18


@given(st.integers(1, 40), st.integers(1, 10), st.sampled_from([(1, 1), (4, 2), (32, 1), (16, 3)]), st.integers(0, 20))
@settings(max_examples=40, deadline=None)
def test_every_tile_keeps_its_largest_blocks_and_the_same_number(
    out: int, blocks: int, sizes: tuple[int, int], seed: int
) -> None:
    pattern = ColBlock(*sizes)
    matrix = _matrix(out, blocks * pattern.columns, seed)
    for keep in range(blocks + 1):
        mask = balanced(matrix, pattern, keep)
        assert pattern.violations(mask) == 0 and imbalance(mask, pattern) == 0.0
        for rows, kept in zip(matrix.split(pattern.rows), mask.split(pattern.rows), strict=True):
            norms = rows.square().reshape(len(rows), blocks, -1).sum((0, 2))
            chosen = kept[0, :: pattern.columns]
            assert int(chosen.sum()) == keep
            assert keep in (0, blocks) or norms[chosen].min() >= norms[~chosen].max()


def test_more_blocks_than_there_are_cannot_be_kept() -> None:
    with pytest.raises(CrepeError, match="5 blocks cannot be kept of 4"):
        balanced(_matrix(4, 8), ColBlock(4, 2), 5)


def test_layers_of_small_weights_lose_more() -> None:
    pattern = ColBlock(4, 2)
    matrices = {"loud": 3 * _matrix(8, 32), "quiet": _matrix(8, 32, 1)}
    masks = select_blocks(matrices, pattern, 0.5)
    kept = {name: float(mask.float().mean()) for name, mask in masks.items()}
    assert kept["loud"] > 0.9 and kept["quiet"] < 0.2
    assert all(pattern.violations(mask) == 0 for mask in masks.values())


def test_imbalance_is_the_fullest_tile_over_the_mean() -> None:
    mask = torch.zeros(8, 8, dtype=torch.bool)
    mask[:4, :6] = True
    mask[4:, :2] = True
    assert imbalance(mask, ColBlock(4, 2)) == pytest.approx(0.5)
    assert imbalance(torch.zeros(4, 8, dtype=torch.bool), ColBlock(4, 2)) == 0.0
