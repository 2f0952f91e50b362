"""Patterns: strings that parse, strings that do not, and the conformance that every pattern passes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from crepe.errors import CrepeError, UsageError
from crepe.masks import NofM, Unstructured, parse_pattern

VALID = {"unstructured": Unstructured(), "2:4": NofM(2, 4), "4:8": NofM(4, 8), "1:2": NofM(1, 2), "8:16": NofM(8, 16)}
INVALID = ["3:2", "0:4", "2:0", "4:4", "2:", ":4", "2:4:8", "-1:4", "1.5:4", "", "blocks", "2/4"]


@pytest.mark.parametrize("text", VALID)
def test_valid(text: str) -> None:
    assert parse_pattern(text) == VALID[text]
    assert str(parse_pattern(text)) == text


@pytest.mark.parametrize("text", INVALID)
def test_invalid_names_the_value(text: str) -> None:
    with pytest.raises(UsageError, match=r"2:4"):
        parse_pattern(text)


@pytest.mark.parametrize("text", VALID)
@given(seed=st.integers(0, 1000), sparsity=st.sampled_from([0.0, 0.3, 0.5, 0.9]))
def test_conformance(text: str, seed: int, sparsity: float) -> None:
    pattern = parse_pattern(text)
    score = torch.rand(5, 32, generator=torch.Generator().manual_seed(seed))
    wanted = pattern.fixed_sparsity if pattern.fixed_sparsity is not None else sparsity
    mask = pattern.select(score, wanted)
    assert mask.dtype == torch.bool and mask.shape == score.shape
    assert pattern.violations(mask) == 0
    assert abs(int((~mask).sum()) - wanted * score.numel()) <= 0.5
    assert torch.equal(mask, pattern.select(score * 8, wanted))


def test_row_comparison_is_exact_in_every_row() -> None:
    score = torch.rand(7, 33, generator=torch.Generator().manual_seed(0))
    mask = Unstructured().select(score, 0.4, "row")
    assert (~mask).sum(1).tolist() == [13] * 7


def test_indivisible_inputs_are_named() -> None:
    with pytest.raises(CrepeError, match="30 inputs are no multiple of 4"):
        NofM(2, 4).select(torch.rand(3, 30), 0.5)


def test_violations_are_counted() -> None:
    mask = torch.tensor([[True, True, True, False, True, True, False, False]])
    assert NofM(2, 4).violations(mask) == 1
