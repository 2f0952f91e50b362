"""Structured patterns: whole columns with the largest sums, exact counts, and masks that only break in single zeros."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from crepe.errors import CrepeError
from crepe.masks import Mask, MaskSet, Structured, kept_count, kept_units, parse_pattern


@pytest.mark.parametrize("text", ["channel", "head", "block"])
def test_names_parse_and_print(text: str) -> None:
    assert parse_pattern(text) == Structured(text)
    assert str(parse_pattern(text)) == text


@given(seed=st.integers(0, 1000), sparsity=st.floats(0, 0.99), width=st.sampled_from([1, 2, 4]))
def test_selection_is_the_largest_sums_and_exact(seed: int, sparsity: float, width: int) -> None:
    # Few different values, so that there are ties.
    score = torch.randint(0, 3, (5, 16), generator=torch.Generator().manual_seed(seed)).float()
    mask = Structured("head", width).select(score, sparsity)
    sums = score.sum(0).reshape(-1, width).sum(1).tolist()
    best = sorted(range(len(sums)), key=lambda unit: (-sums[unit], unit))[: kept_count(len(sums), sparsity)]
    wanted = torch.zeros(len(sums), dtype=torch.bool)
    wanted[best] = True
    assert torch.equal(mask, wanted.repeat_interleave(width).expand(5, 16))
    assert Structured("head", width).violations(mask) == 0


@given(total=st.integers(1, 200), sparsity=st.floats(0, 0.99), multiple=st.integers(1, 64))
def test_rounding_keeps_more_and_no_more_than_needed(total: int, sparsity: float, multiple: int) -> None:
    kept, asked = kept_units(total, sparsity, multiple), kept_count(total, sparsity)
    assert asked <= kept <= total
    assert kept == total or (kept % multiple == 0 and kept - multiple < asked)


def test_single_zeros_break_the_pattern() -> None:
    mask = torch.ones(4, 6, dtype=torch.bool)
    mask[1], mask[:, 2] = False, False
    assert Structured("channel").violations(mask) == 0
    mask[0, 4] = False
    assert Structured("channel").violations(mask) == 1


def test_a_width_that_does_not_divide_is_named() -> None:
    with pytest.raises(CrepeError, match="6 inputs are no multiple of 4"):
        Structured("head", 4).select(torch.rand(2, 6), 0.5)


def test_masks_are_saved_and_read_back(tmp_path: Path) -> None:
    kept = torch.rand(6) > 0.5
    MaskSet({"w": Mask(kept.expand(4, 6).clone(), Structured("channel"))}).save(tmp_path / "masks.safetensors")
    found = MaskSet.load(tmp_path / "masks.safetensors")["w"]
    assert torch.equal(found.kept, kept.expand(4, 6)) and found.pattern == Structured("channel")
    assert found.violations == 0
