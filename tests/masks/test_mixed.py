"""Mixed patterns: what parses, which option a tensor takes, and what counts as broken."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from crepe.errors import CrepeError, UsageError
from crepe.masks import Dense, Mask, MaskSet, Mixed, NofM, Unstructured, parse_pattern

MIX = parse_pattern("dense+2:4+4:8+2:8")


def _score(out: int = 4, inputs: int = 16, seed: int = 0) -> torch.Tensor:
    return torch.rand(out, inputs, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("text", ["dense+2:4", "2:4+4:8", "dense+2:4+4:8+2:8"])
def test_valid(text: str) -> None:
    pattern = parse_pattern(text)
    assert isinstance(pattern, Mixed)
    assert str(pattern) == text and parse_pattern(str(pattern)) == pattern
    assert pattern.fixed_sparsity is None


def test_dense_alone_is_no_mix() -> None:
    assert parse_pattern("dense") == Dense()
    assert Dense().fixed_sparsity == 0.0 and bool(Dense().select(_score(), 0.5).all())


@pytest.mark.parametrize("text", ["+", "dense+", "+2:4", "dense+dense", "2:4+2:4", "dense+unstructured", "dense+4:2"])
def test_invalid_names_the_way_out(text: str) -> None:
    with pytest.raises(UsageError, match=r"2:4"):
        parse_pattern(text)


def test_sparsities() -> None:
    assert MIX.sparsities == (0.0, 0.5, 0.75)
    assert MIX.sparsities_of((4, 12)) == (0.0, 0.5)
    assert MIX.sparsities_of((4, 7)) == (0.0,)
    assert NofM(2, 4).sparsities == (0.5,) and NofM(2, 4).sparsities_of((4, 7)) == ()
    assert Unstructured().sparsities is None and Unstructured().sparsities_of((4, 7)) is None


@given(st.floats(0, 1), st.integers(0, 100))
def test_select_takes_the_nearest_sparsity(sparsity: float, seed: int) -> None:
    mask = MIX.select(_score(seed=seed), sparsity)
    taken = 1 - float(mask.float().mean())
    assert abs(taken - sparsity) == min(abs(own - sparsity) for own in (0.0, 0.5, 0.75))
    assert MIX.violations(mask) == 0


def test_of_two_equally_near_the_denser_is_taken() -> None:
    assert MIX.option_for(0.25) == Dense()
    assert MIX.option_for(0.625) == NofM(2, 4)


def test_of_equal_sparsities_the_one_that_keeps_more() -> None:
    score = torch.tensor([[9.0, 8.0, 7.0, 1.0, 1.0, 1.0, 1.0, 1.0]])
    assert MIX.option_for(0.5, score) == NofM(4, 8)
    assert MIX.select(score, 0.5)[0, :3].all()
    balanced = torch.tensor([[9.0, 8.0, 1.0, 1.0, 9.0, 8.0, 1.0, 1.0]])
    assert MIX.option_for(0.5, balanced) == MIX.option_for(0.5) == NofM(2, 4)


def test_options_that_do_not_fit_are_passed_over() -> None:
    score = _score(4, 12)
    assert MIX.option_for(0.5, score) == NofM(2, 4)
    assert MIX.option_for(0.75, score) == NofM(2, 4)
    assert MIX.select(_score(4, 7), 0.75).all()


def test_obstacle_only_where_nothing_fits() -> None:
    assert MIX.obstacle((4, 7)) is None
    pair = parse_pattern("2:4+4:8")
    assert pair.obstacle((4, 12)) is None
    assert pair.obstacle((4, 7)) == "its 7 inputs are no multiple of 4; its 7 inputs are no multiple of 8"
    for use in (lambda: pair.select(_score(4, 7), 0.5), lambda: pair.violations(torch.ones(4, 7))):
        with pytest.raises(CrepeError, match=r"2:4\+4:8 does not fit a tensor of shape \(4, 7\)"):
            use()


def test_violations_are_those_of_the_best_option() -> None:
    mask = NofM(2, 4).select(_score(), 0.5)
    mask[0, :4] = True
    assert parse_pattern("dense+2:4").violations(mask) == 1
    assert Dense().violations(mask) == int((~mask).sum())
    assert parse_pattern("dense+2:4").violations(torch.ones(2, 7, dtype=torch.bool)) == 0


def test_masks_are_saved_with_their_mix_or_their_option(tmp_path) -> None:  # type: ignore[no-untyped-def]
    masks = MaskSet({"a": Mask(MIX.select(_score(), 0.5), MIX), "b": Mask(Dense().select(_score(), 0), Dense())})
    masks.save(tmp_path / "masks.safetensors")
    found = MaskSet.load(tmp_path / "masks.safetensors")
    found.check()
    assert (found["a"].pattern, found["b"].pattern) == (MIX, Dense())
