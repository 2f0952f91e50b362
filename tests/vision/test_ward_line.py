"""Ward clustering on a line against the trees of the general clustering."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from crepe.vision.ward import labels, layer_cut, merge_cost, trees
from crepe.vision.ward_line import boundary_costs, line_clusters


def _values(channels: int, points: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(channels, points, generator=generator).double() * torch.rand(channels, 1, generator=generator)


def _same(first: Tensor, second: Tensor) -> bool:
    """Whether two labellings of the same points are the same partition."""
    return torch.equal(first[:, None] == first[None], second[:, None] == second[None])


@given(st.integers(1, 5), st.integers(2, 24), st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_costs_are_those_of_the_trees(channels: int, points: int, seed: int) -> None:
    values = _values(channels, points, seed)
    for costs, tree in zip(boundary_costs(values.sort().values), trees(values[:, :, None]), strict=True):
        expected = [merge_cost(tree, step) for step in range(1, points)]
        assert costs.sort().values.tolist() == pytest.approx(expected)


@given(st.integers(1, 5), st.integers(2, 24), st.integers(0, 1000), st.data())
@settings(max_examples=40, deadline=None)
def test_clusters_are_those_of_the_trees(channels: int, points: int, seed: int, data: st.DataObject) -> None:
    values = _values(channels, points, seed)
    merges = data.draw(st.integers(1, points - 1))
    found = trees(values[:, :, None])
    # A hair above the cut, since both round differently.
    expected = labels(found, layer_cut(found, merges) * (1 + 1e-9))
    for line, tree in zip(line_clusters(values, merges), expected.T, strict=True):
        assert _same(line, tree)


def test_equal_values_merge_first_and_for_nothing() -> None:
    values = torch.tensor([[3.0, 1.0, 3.0, 2.0], [0.0, 0.0, 0.0, 0.0]]).double()
    assert boundary_costs(values.sort().values).tolist() == [
        [0.5, 2.25, 0.0],
        [0.0] * 3,
    ]
    assert line_clusters(values, 1).tolist() == [[2, 0, 2, 1], [0, 0, 0, 0]]
