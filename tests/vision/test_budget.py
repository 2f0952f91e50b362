"""Heads and feed-forward parts share one budget of multiply-accumulates."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import crepe
from crepe.vision.attention import find_attentions
from crepe.vision.budget import HeadCost, least_share
from crepe.vision.cost import macs
from crepe.vision.methods import METHODS, HeadChoice, HeadPart, Method
from crepe.vision.methods.toast import select_heads
from image_data import STEPS, parquet, picture
from image_families import FusedTransformer

EXAMPLE = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
TOKENS, WIDTH = 16, 64


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return parquet(tmp_path_factory.mktemp("budget") / "a.parquet", 12)


def _model() -> FusedTransformer:
    torch.manual_seed(0)
    return FusedTransformer().eval()


def _pruned(data: str, **fields: Any) -> tuple[FusedTransformer, Any]:
    model = _model()
    return model, crepe.prune(model, example=EXAMPLE, method="toast", calibration=data, preprocess=STEPS, **fields)


@given(st.integers(1, 50), st.floats(0, 1))
def test_the_least_share_meets_the_target_and_nothing_smaller_does(steps: int, wanted: float) -> None:
    def cost(share: float) -> float:
        return 1 - int(share * steps) / steps

    share = least_share(cost, wanted)
    assert cost(share) <= wanted and (share < 1e-9 or cost(share - 1e-9) > wanted)


def test_products_of_attentions_count() -> None:
    """Per block: four projections, the feed-forward part of twice the width, and two products over all tokens."""
    block = TOKENS * WIDTH * WIDTH * (4 + 4) + 2 * TOKENS * TOKENS * WIDTH
    assert macs(_model(), EXAMPLE) == TOKENS * WIDTH * 3 * 64 + 3 * block + WIDTH * 5


def test_smaller_heads_save_their_share_of_projections_and_products() -> None:
    model = _model()
    kept = torch.arange(8).expand(2, -1)
    chosen = [(find_attentions(model)[1], HeadChoice(kept, kept))]
    whole = TOKENS * WIDTH * WIDTH * 4 + 2 * TOKENS * TOKENS * WIDTH
    assert HeadCost(model, EXAMPLE).saved(chosen) == whole * 3 // 4
    assert model.blocks[1].attn.head_dim == 32


def test_toast_meets_a_share_of_multiply_accumulates_and_spares_the_first_block(data: str) -> None:
    model, result = _pruned(data, macs=0.6)
    assert 0.58 < result.macs[1] / result.macs[0] <= 0.6
    first, *others = model.blocks
    assert first.attn.head_dim == 32 and first.fc1.out_features == 128
    assert {block.attn.head_dim for block in others} <= {8, 16, 24}
    assert all(block.fc1.out_features < 128 for block in others)
    assert result.macs[1] == macs(model, EXAMPLE)


def test_heads_alone_meet_a_share_as_closely_as_their_steps_allow(monkeypatch: pytest.MonkeyPatch) -> None:
    METHODS.names()
    monkeypatch.setitem(METHODS._entries, "heads", Method((HeadPart(select_heads),)))
    model = _model()
    result = crepe.prune(model, example=EXAMPLE, method="heads", macs=0.9)
    assert 0.8 < result.macs[1] / result.macs[0] <= 0.9
    assert model.blocks[1].attn.head_dim in (8, 16, 24) and model.blocks[1].fc1.out_features == 128


def test_the_first_feed_forward_part_goes_where_it_is_asked_for(data: str) -> None:
    model, result = _pruned(data, sparsity=0.5, include="blocks.*.fc1")
    assert model.blocks[0].fc1.out_features == 64 and model.blocks[0].attn.head_dim == 32
    assert "the method leaves this attention as it is" in [s["reason"] for s in result.skipped]


def test_a_share_out_of_reach_is_named(data: str) -> None:
    with pytest.raises(crepe.CrepeError, match=r"macs = 0\.1 is out of reach: .* smallest heads 0\.\d+ is left"):
        _pruned(data, macs=0.1)


def test_compensation_brings_smaller_heads_closer_to_the_dense_ones(data: str) -> None:
    values = STEPS([picture(i) for i in range(12)])
    with torch.no_grad():
        dense = _model()(values)
        errors = [
            float((_pruned(data, sparsity=0.5, exclude="*.fc1", **fields)[0](values) - dense).norm())
            for fields in ({}, {"refine": "compensate"})
        ]
    assert errors[1] < 0.7 * errors[0]
