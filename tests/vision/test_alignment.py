"""Alignment of kept columns to tiles."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from crepe.vision.alignment import Columns, align, measured_gain, modelled_gain
from crepe.vision.taps import select_taps


def test_the_modelled_gain_is_in_steps_of_tiles() -> None:
    assert [modelled_gain(kept) for kept in (31, 32, 33, 64, 65, 95)] == [1.0, 1.0, 2.0, 1.0, 1.5, 1.5]


def test_the_measured_gain_compares_with_the_full_tiles() -> None:
    seconds = [float(k) for k in range(100)]
    assert [measured_gain(seconds, kept) for kept in (20, 64, 80)] == [1.0, 1.0, 1.25]


def test_the_half_that_gains_most_is_cut_and_the_rest_filled_up() -> None:
    layers = {
        "a": Columns(33, 288),
        "b": Columns(80, 288),
        "c": Columns(64, 288),
        "d": Columns(70, 288),
        "e": Columns(287, 288),
    }
    found = align(layers, {name: modelled_gain(columns.kept) for name, columns in layers.items()})
    assert {name: columns.kept for name, columns in found.items()} == {"a": 32, "b": 96, "c": 64, "d": 64, "e": 288}


def test_a_layer_is_never_cut_below_its_least_nor_filled_above_its_total() -> None:
    layers = {"a": Columns(40, 72, 36), "b": Columns(70, 72)}
    found = align(layers, {"a": 9.0, "b": 1.0})
    assert {name: columns.kept for name, columns in found.items()} == {"a": 64, "b": 72}


@given(st.lists(st.integers(1, 288), min_size=1, max_size=8))
def test_all_end_on_multiples_within_one_tile(kept: list[int]) -> None:
    layers = {str(i): Columns(count, 288) for i, count in enumerate(kept)}
    for name, columns in align(layers, {name: modelled_gain(c.kept) for name, c in layers.items()}).items():
        assert columns.kept % 32 == 0 and abs(columns.kept - layers[name].kept) < 32


@pytest.mark.parametrize("kept", [64, 96, 224])
def test_an_aligned_sparsity_selects_exactly_those_columns(kept: int) -> None:
    weight = torch.randn(64, 1, 3, 3, generator=torch.Generator().manual_seed(0))
    mask = select_taps(weight, Columns(kept, 288).sparsity)
    assert [int(part.sum()) for part in mask.split(32)] == [kept, kept]
