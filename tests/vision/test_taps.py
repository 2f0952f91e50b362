"""Tap pruning: balance, the guard, and what cannot be asked for."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from crepe.errors import CrepeError
from crepe.masks import Taps
from crepe.vision.taps import guarded, select_taps, tap_score


def _weight(channels: int, kernel: int = 3, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(channels, 1, kernel, kernel, generator=generator) * torch.rand(channels, 1, 1, 1).exp()


@given(st.integers(1, 80), st.integers(0, 85), st.sampled_from([16, 32]), st.integers(0, 20))
@settings(deadline=None)
def test_every_group_is_balanced_and_every_channel_lives(channels: int, percent: int, group: int, seed: int) -> None:
    kept = select_taps(_weight(channels, seed=seed), percent / 100, group)
    assert Taps(group).violations(kept.flatten(1)) == 0
    assert bool(kept.flatten(1).any(1).all())
    assert [int((~part).sum()) for part in kept.split(group)] == [
        percent * part.numel() // 100 for part in kept.split(group)
    ]


def test_without_weak_channels_the_smallest_taps_go() -> None:
    weight = torch.randn(2, 1, 3, 3, generator=torch.Generator().manual_seed(0))
    threshold = weight.abs().flatten().sort().values[8]
    assert torch.equal(select_taps(weight, 0.5, 2), weight.abs() > threshold)


def test_the_guard_keeps_the_best_tap_of_a_weak_channel() -> None:
    weight = torch.ones(2, 1, 3, 3)
    weight[1] *= 0.01
    weight[1, 0, 2, 1] = 0.02
    assert select_taps(weight, 0.5, 2)[1].flatten().tolist() == [i == 7 for i in range(9)]
    assert not Taps(2).select(tap_score(weight), 0.5)[1].any()
    assert guarded(torch.zeros(1, 3)).tolist() == [[torch.inf, 0.0, 0.0]]


def test_a_sparsity_that_leaves_channels_empty_is_refused() -> None:
    with pytest.raises(CrepeError, match=r"0\.9 leaves less than one of the 9 taps of each channel of b\.dw.*0\.888"):
        select_taps(_weight(64), 0.9, name="b.dw")
