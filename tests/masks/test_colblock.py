"""Balanced column blocks: the same number in every tile, whole blocks, by the sum of their scores."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from crepe.errors import CrepeError, UsageError
from crepe.masks import ColBlock, parse_pattern


@given(
    st.integers(0, 999), st.integers(1, 9), st.integers(1, 5), st.integers(1, 4), st.sampled_from([0.0, 0.3, 0.5, 0.9])
)
def test_conformance(seed: int, out: int, rows: int, columns: int, sparsity: float) -> None:
    pattern, blocks = ColBlock(rows, columns), 6
    score = torch.rand(out, blocks * columns, generator=torch.Generator().manual_seed(seed))
    mask = pattern.select(score, sparsity)
    assert pattern.violations(mask) == 0
    kept = blocks - int(blocks * sparsity + 0.5)
    assert mask.sum(1).tolist() == [kept * columns] * out
    for top in range(0, out, rows):
        tile, part = mask[top : top + rows], score[top : top + rows]
        assert bool((tile == tile[0]).all())
        sums = part.sum(0).reshape(blocks, columns).sum(1)
        alive = tile[0].reshape(blocks, columns)[:, 0]
        if 0 < kept < blocks:
            assert float(sums[alive].min()) >= float(sums[~alive].max()) - 1e-5


def test_violations_are_partial_blocks_and_poor_tiles() -> None:
    mask = torch.tensor([[1, 1, 1, 1, 0, 0], [1, 0, 0, 0, 0, 0]]).bool()
    assert ColBlock(1, 2).violations(mask) == 2  # the second tile: one block in part, one block fewer
    assert ColBlock(2, 2).violations(mask) == 2  # one tile: two blocks in part


def test_indivisible_inputs_are_named() -> None:
    with pytest.raises(CrepeError, match="30 inputs are no multiple of 8"):
        ColBlock(4, 8).select(torch.rand(4, 30), 0.5)


def test_parsing() -> None:
    assert parse_pattern("colblock:64x8") == ColBlock(64, 8)
    assert str(ColBlock(64, 8)) == "colblock:64x8"
    for wrong in ("colblock", "colblock:8", "colblock:0x8", "colblock:8x0", "colblock:-1x8"):
        with pytest.raises(UsageError, match="colblock:64x8"):
            parse_pattern(wrong)
