"""Costs of backward elimination against fitting everything again after every loss."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from crepe.masks import ColBlock
from crepe.masks.taps import Taps
from crepe.refine.gram import damped
from crepe.vision.compensation import Moments
from crepe.vision.elimination import block_costs, tap_costs
from crepe.vision.methods import METHODS, Layer, MaskPart
from crepe.vision.shared_columns import refit


def _covariance(size: int, seed: int) -> Tensor:
    rows = torch.randn(40, size, generator=torch.Generator().manual_seed(seed))
    rows = rows @ torch.randn(size, size, generator=torch.Generator().manual_seed(seed + 1))
    return rows.T @ rows / 40


def _naive(matrix: Tensor, covariance: Tensor, columns: int) -> list[float]:
    """Remove the block whose loss costs least after a fit from scratch, again and again."""
    blocks = matrix.shape[1] // columns
    gone: list[int] = []
    costs, before = [float("inf")] * blocks, 0.0
    safe = damped(covariance).double()
    for _ in range(blocks - 1):
        errors = {}
        for block in set(range(blocks)) - set(gone):
            kept = torch.ones(blocks, dtype=torch.bool)
            kept[[*gone, block]] = False
            mask = kept.repeat_interleave(columns).expand_as(matrix)
            lost = (matrix - refit(matrix, mask, covariance)).double()
            errors[block] = float(((lost @ safe) * lost).sum())
        cheapest = min(errors, key=lambda block: errors[block])
        costs[cheapest] = max(errors[cheapest] - before, max((c for c in costs if c < float("inf")), default=0.0))
        before = errors[cheapest]
        gone.append(cheapest)
    return costs


@pytest.mark.parametrize("columns", [1, 2, 4])
def test_costs_of_blocks_are_those_of_fits_from_scratch(columns: int) -> None:
    matrix, covariance = torch.randn(3, 12, generator=torch.Generator().manual_seed(0)), _covariance(12, 1)
    assert block_costs(matrix, covariance, columns).tolist() == pytest.approx(
        _naive(matrix, covariance, columns), rel=2e-3
    )


def test_costs_of_taps_are_those_of_each_channel_alone() -> None:
    weight = torch.randn(4, 9, generator=torch.Generator().manual_seed(0))
    covariances = torch.stack([_covariance(9, seed) for seed in range(4)])
    scale = torch.tensor([1.0, 2.0, -0.5, 3.0])
    naive = [_naive(row[None] * s, c, 1) for row, c, s in zip(weight, covariances, scale, strict=True)]
    found = tap_costs(weight, covariances, scale)
    for costs, expected in zip(found.tolist(), naive, strict=True):
        assert costs == pytest.approx(expected, rel=2e-3)


def test_a_dead_channel_costs_nothing_and_breaks_nothing() -> None:
    covariances = torch.stack([_covariance(9, 0), torch.zeros(9, 9)])
    found = tap_costs(torch.ones(2, 9), covariances, torch.tensor([1.0, 0.0]))
    assert not found.isnan().any() and found[1].isfinite().sum() == 8 and found[1][found[1].isfinite()].sum() == 0


def _kept(part: MaskPart, layer: Layer, share: float) -> Tensor:
    assert part.score is not None
    return part.select({layer.name: replace(layer, statistics={"score": part.score(layer)})}, share)[layer.name]


def test_methods_choose_by_cost_and_keep_their_patterns() -> None:
    taps, blocks = (METHODS.get(name).parts[0] for name in ("deprune-obs", "bcbp-obs"))
    assert isinstance(taps, MaskPart) and isinstance(blocks, MaskPart)
    weight = torch.randn(64, 1, 3, 3, generator=torch.Generator().manual_seed(0))
    covariances = torch.stack([_covariance(9, seed) for seed in range(64)])
    layer = Layer("a", (weight,), "depthwise", moments=Moments(torch.zeros(64, 9), covariances), gain=torch.ones(64))
    kept = _kept(taps, layer, 0.5)
    assert Taps(32).violations(kept.flatten(1)) == 0 and int(kept.sum()) == 64 * 9 // 2
    silent = layer.moments.covariance.clone()
    silent[:, 4] = silent[:, :, 4] = 0.0
    other = Layer("a", (weight,), "depthwise", moments=Moments(torch.zeros(64, 9), silent), gain=torch.ones(64))
    missed = [int((~_kept(taps, one, 0.5)).flatten(1)[:, 4].sum()) for one in (layer, other)]
    assert missed[1] > 1.4 * missed[0]
    matrix = torch.randn(64, 32, 1, 1, generator=torch.Generator().manual_seed(1))
    point = Layer("b", (matrix,), "pointwise", moments=Moments(torch.zeros(32), _covariance(32, 3)))
    kept = _kept(blocks, point, 0.5)
    assert ColBlock(32, 8).violations(kept.flatten(1)) == 0 and float(kept.float().mean()) == 0.5
