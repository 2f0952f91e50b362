"""Layer sparsities from batch-norm scales."""

from __future__ import annotations

import pytest
import torch

from crepe.vision.concurrent import kept_filters
from crepe.vision.widths.bn_quantile import layer_sparsities


def test_shares_below_the_common_quantile() -> None:
    scales = {"a": torch.tensor([0.1, -0.2, 0.9, 0.8]), "b": torch.tensor([0.3, -0.05, 0.7, -1.0])}
    assert layer_sparsities(scales, 0.5) == {"a": 0.5, "b": 0.5}
    assert layer_sparsities(scales, 0.25) == {"a": 0.25, "b": 0.25}
    assert layer_sparsities(scales, 0.0) == {"a": 0.0, "b": 0.0}


def test_without_ties_the_shares_add_up_to_the_target() -> None:
    generator = torch.Generator().manual_seed(0)
    scales = {str(n): torch.randn(n, generator=generator) for n in (8, 64, 100)}
    found = layer_sparsities(scales, 0.37)
    assert sum(found[name] * len(scale) for name, scale in scales.items()) == pytest.approx(int(0.37 * 172 + 0.5))


def test_equal_scales_give_one_everywhere() -> None:
    assert layer_sparsities({"a": torch.ones(4), "b": torch.ones(8)}, 0.3) == {"a": 1.0, "b": 1.0}


def test_kept_filters_round_up_and_never_reach_zero() -> None:
    assert [kept_filters(10, s) for s in (0.0, 0.7, 0.71, 0.75, 1.0)] == [10, 3, 3, 3, 1]
