"""Regrowth: the cosine, and which filters come back."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from crepe.vision.regrowth import regrown, regrowth_share


def test_the_share_falls_from_its_start_to_nothing() -> None:
    shares = [regrowth_share(epoch, 180, 0.3) for epoch in (0, 60, 90, 120, 180, 181)]
    assert shares == pytest.approx([0.3, 0.225, 0.15, 0.075, 0.0, 0.0])


@given(st.integers(1, 20), st.integers(0, 20), st.integers(0, 25), st.integers(0, 100))
def test_only_dead_filters_come_back_and_never_too_many(width: int, keep: int, total: int, seed: int) -> None:
    selected = torch.randperm(width, generator=torch.Generator().manual_seed(seed))[:keep]
    found = regrown(selected, width, total, torch.Generator().manual_seed(seed))
    assert not set(found.tolist()) & set(selected.tolist())
    assert found.tolist() == sorted(set(found.tolist()))
    assert len(found) == min(max(total - len(selected), 0), width - len(selected))
    assert torch.equal(found, regrown(selected, width, total, torch.Generator().manual_seed(seed)))
