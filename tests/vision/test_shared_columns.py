"""The refit of shared columns equals the row by row least squares, and lowers the error."""

from __future__ import annotations

import torch

from crepe.masks import output_error
from crepe.masks.colblock import ColBlock
from crepe.refine.optimal import least_squares
from crepe.vision.column_blocks import balanced
from crepe.vision.shared_columns import refit


def test_it_is_the_least_squares_of_every_row() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(200, 24, generator=generator) @ torch.randn(24, 24, generator=generator)
    dense, gram = torch.randn(10, 24, generator=generator), inputs.T @ inputs
    kept = balanced(dense, ColBlock(4, 2), 5)
    found = refit(dense, kept, gram)
    torch.testing.assert_close(found, least_squares(dense, kept, gram), rtol=1e-3, atol=1e-4)
    assert not found[~kept].any()
    assert output_error(dense, found, gram) < 0.8 * output_error(dense, dense * kept, gram)


def test_rows_that_keep_nothing_stay_zero() -> None:
    kept = torch.zeros(3, 8, dtype=torch.bool)
    kept[0] = True
    dense = torch.ones(3, 8)
    assert torch.equal(refit(dense, kept, torch.eye(8)), dense * kept)
