"""Widths are exact, aligned and never empty."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from crepe.errors import CrepeError
from crepe.vision.methods import Layer
from crepe.vision.widths import RULES
from crepe.vision.widths.base import aligned, widths


def _layer(name: str, width: int, *scales: torch.Tensor) -> Layer:
    return Layer(name, (torch.ones(width, 2, 3, 3),), scales=scales)


@given(st.integers(0, 300), st.integers(1, 300), st.sampled_from([1, 2, 4, 8, 16, 32]))
def test_alignment(keep: int, width: int, step: int) -> None:
    found = aligned(min(keep, width), width, step)
    assert 1 <= found <= width and (found % step == 0 or found == width)
    if found < width:
        assert abs(found - min(keep, width)) <= max(step / 2, step - min(keep, width))


@pytest.mark.parametrize(("keep", "expected"), [(11, 8), (12, 16), (13, 16), (3, 8), (20, 20)])
def test_alignment_by_hand(keep: int, expected: int) -> None:
    assert aligned(keep, 20, 8) == expected


def test_uniform_removes_the_same_share_everywhere() -> None:
    layers = [_layer("a", 16), _layer("b", 10)]
    assert widths(layers, RULES.get("uniform")(layers, 0.25), 1, False) == {"a": 12, "b": 7}


def test_a_layer_that_would_be_emptied_is_named() -> None:
    layers = [_layer("wide", 64), _layer("narrow", 4)]
    with pytest.raises(CrepeError, match=r"removing 95.00% of the 4 channels of 'narrow' leaves none"):
        widths(layers, {"wide": 0.95, "narrow": 0.95}, 1, False)
    assert widths(layers, {"wide": 0.95, "narrow": 0.95}, 1, True) == {"wide": 3, "narrow": 1}


def test_layers_without_batch_norm_get_the_wanted_share() -> None:
    layers = [_layer("a", 4, torch.tensor([0.1, 0.2, 3.0, 4.0])), _layer("b", 4)]
    assert RULES.get("bn-quantile")(layers, 0.5) == {"a": 0.5, "b": 0.5}
