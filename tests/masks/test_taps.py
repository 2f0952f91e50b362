"""Balanced taps: parsing, exact counts in every group, brute force, and what counts as broken."""

from __future__ import annotations

import itertools
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from crepe.errors import UsageError
from crepe.masks import Mask, MaskSet, Taps, parse_pattern

SHAPES = st.tuples(st.integers(1, 20), st.integers(1, 9))


def _score(shape: tuple[int, int], seed: int) -> torch.Tensor:
    """Few distinct values, so that ties are the rule."""
    return torch.randint(0, 5, shape, generator=torch.Generator().manual_seed(seed)).float()


@pytest.mark.parametrize("text", ["tap:1", "tap:32", "tap:128"])
def test_valid(text: str) -> None:
    assert str(parse_pattern(text)) == text
    assert parse_pattern(text) == Taps(int(text[4:]))
    assert parse_pattern(text).fixed_sparsity is None and parse_pattern(text).obstacle((5, 9)) is None


@pytest.mark.parametrize("text", ["tap", "tap:", "tap:0", "tap:-1", "tap:4x2", "taps:32", "tap:01"])
def test_invalid_names_the_way_out(text: str) -> None:
    with pytest.raises(UsageError, match=r"tap:32"):
        parse_pattern(text)


@given(SHAPES, st.integers(1, 8), st.integers(0, 100), st.integers(0, 50))
def test_every_group_loses_the_floor_of_its_share(shape: tuple[int, int], group: int, percent: int, seed: int) -> None:
    mask = Taps(group).select(_score(shape, seed), percent / 100)
    assert mask.shape == shape and Taps(group).violations(mask) == 0
    for part in mask.split(group):
        assert int((~part).sum()) == int(Fraction(percent, 100) * part.numel())


@given(SHAPES, st.integers(1, 8), st.floats(0, 1), st.integers(0, 50))
def test_the_smallest_of_a_group_go_and_ties_keep_the_lower_index(
    shape: tuple[int, int], group: int, sparsity: float, seed: int
) -> None:
    score = _score(shape, seed)
    mask = Taps(group).select(score, sparsity)
    for values, kept in zip(score.split(group), mask.split(group), strict=True):
        flat = values.reshape(-1).tolist()
        order = sorted(range(len(flat)), key=lambda i: (-flat[i], i))
        assert {i for i, keep in enumerate(kept.reshape(-1).tolist()) if keep} == set(order[: int(kept.sum())])


def test_masks_of_a_higher_sparsity_lie_in_those_of_a_lower() -> None:
    score = _score((40, 9), 0)
    masks = [Taps(32).select(score, sparsity) for sparsity in (0.2, 0.5, 0.9)]
    assert all(bool((small <= large).all()) for large, small in itertools.pairwise(masks))


def test_an_unbalanced_group_is_a_violation() -> None:
    mask = torch.ones(8, 9, dtype=torch.bool)
    assert Taps(2).violations(mask) == 0
    mask[2, 0] = mask[4, 0] = False
    assert Taps(2).violations(mask) == 2
    with pytest.raises(Exception, match=r"conv.weight.*tap:2.*2 groups"):
        MaskSet({"conv.weight": Mask(mask, Taps(2))}).check()


def test_a_short_group_of_another_share_is_a_violation() -> None:
    pattern = Taps(4)
    mask = pattern.select(_score((6, 9), 0), 0.5)
    assert pattern.violations(mask) == 0
    mask[4:] = True
    assert pattern.violations(mask) == 1
    mask[4:] = False
    assert pattern.violations(mask) == 1
