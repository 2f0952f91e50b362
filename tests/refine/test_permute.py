"""The refinement, and the folded form of it: orders that producers can follow."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from crepe.errors import UsageError
from crepe.masks import Matrix, parse_pattern, select_n_of_m
from crepe.refine import REFINEMENTS
from crepe.refine.fold import folded_order
from crepe.refine.permutation import best_order, retained


def _matrix(pattern: str = "2:4", out: int = 12, inputs: int = 32) -> Matrix:
    generator = torch.Generator().manual_seed(0)
    dense = torch.randn(out, inputs, generator=generator)
    x = torch.randn(50, inputs, generator=generator) * torch.rand(inputs, generator=generator).exp()
    score = dense.abs() * x.norm(dim=0)
    chosen = parse_pattern(pattern)
    kept = chosen.select(score, 0.5)
    statistics = {"norm": x.norm(dim=0), "gram": x.T @ x, "tokens": torch.tensor(50)}
    return Matrix(dense, dense * kept, kept, score, statistics, chosen, 0.5)


@pytest.mark.parametrize("pattern", ["2:4", "4:8", "1:4"])
def test_permute_keeps_the_pattern_in_its_order_and_more_score(pattern: str) -> None:
    before = _matrix(pattern)
    after = REFINEMENTS.get("permute").function(before)
    assert after.order is not None and torch.equal(after.order.sort().values, torch.arange(32))
    assert after.pattern.violations(after.kept) == 0
    assert torch.equal(after.weight, after.dense * after.kept)
    assert after.score[after.kept].sum() > before.score[before.kept].sum()
    assert after.kept.sum() == before.kept.sum()


def test_permute_maps_back_to_the_model() -> None:
    before = _matrix()
    after = REFINEMENTS.get("permute").function(before).in_model_order()
    assert torch.equal(after.dense, before.dense) and torch.equal(after.score, before.score)
    assert torch.equal(after.gram, before.gram)
    assert torch.equal(after.weight, before.dense * after.kept)


def test_permute_says_why_other_patterns_do_not_fit() -> None:
    entry = REFINEMENTS.get("permute")
    entry.require_fit("permute", parse_pattern("2:4"), "row")
    with pytest.raises(UsageError, match=r"'permute' does not fit pattern unstructured: .*N:M"):
        entry.require_fit("permute", parse_pattern("unstructured"), "row")


def _kept(score: Tensor, order: Tensor) -> float:
    return float((score[:, order] * select_n_of_m(score[:, order], 2, 4)).sum(dtype=torch.float64))


def test_one_group_is_a_free_permutation() -> None:
    score = _matrix().score
    groups = torch.arange(32).reshape(1, 1, 32)
    assert torch.equal(folded_order(score, groups, 2, 4), best_order(score, 2, 4))


@given(st.sampled_from([(1, 1, 32), (2, 2, 8), (1, 4, 8), (4, 1, 8), (2, 4, 4)]), st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_folded_order_stays_in_its_groups_and_never_loses(shape: tuple[int, int, int], seed: int) -> None:
    score = torch.rand(6, 32, generator=torch.Generator().manual_seed(seed))
    groups = torch.arange(32).reshape(shape)
    order = folded_order(score, groups, 2, 4)
    moved = order[groups]
    assert torch.equal(moved.sort(-1).values, groups)
    inner = moved - groups[..., :1]
    assert torch.equal(inner, inner[:, :1].expand_as(inner))
    assert _kept(score, order) >= _kept(score, torch.arange(32))


def test_tied_heads_decide_together() -> None:
    """What is best for the two heads taken one after the other in the rows of one matrix."""
    score = _matrix(inputs=32).score
    order = folded_order(score, torch.arange(32).reshape(1, 2, 16), 2, 4)
    stacked = torch.cat([score[:, :16], score[:, 16:]])
    assert torch.equal(order[:16], best_order(stacked, 2, 4))
    assert _kept(score, order) == pytest.approx(retained(stacked, 2, 4, order[:16]))


@pytest.mark.parametrize("groups", [torch.arange(32).reshape(2, 1, 16)[:1], torch.arange(30).reshape(5, 1, 6)])
def test_what_cannot_move_stays(groups: Tensor) -> None:
    """Columns that no group names, and heads that M does not divide."""
    order = folded_order(_matrix().score, groups, 2, 4)
    assert torch.equal(order[16:], torch.arange(16, 32))
    assert torch.equal(order[:16], torch.arange(16)) == (groups.shape[-1] == 6)
