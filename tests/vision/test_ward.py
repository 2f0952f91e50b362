"""Ward clustering against a naive one that merges the cheapest pair of clusters, and the cut of a layer."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from crepe.vision.ward import kernel_clusters, kernel_sets, labels, layer_cut, merge_cost, trees


def _weight(out: int, channels: int, kernel: int = 3, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    scale = torch.rand(1, channels, 1, 1, generator=generator) + 0.5
    return torch.randn(out, channels, kernel, kernel, generator=generator) * scale


def _cost(a: Tensor, b: Tensor) -> float:
    """I(A, B) as the paper has it. a: (|A|, d); b: (|B|, d)."""
    return len(a) * len(b) / (len(a) + len(b)) * float((a.mean(0) - b.mean(0)).square().sum())


def _naive(points: Tensor) -> tuple[list[float], list[list[frozenset[int]]]]:
    """Costs of all merges, and the partition before the first and after each."""
    clusters = [frozenset([i]) for i in range(len(points))]
    costs, partitions = [], [list(clusters)]
    while len(clusters) > 1:
        pairs = [(a, b) for i, a in enumerate(clusters) for b in clusters[i + 1 :]]
        best = min(pairs, key=lambda pair: _cost(points[list(pair[0])], points[list(pair[1])]))
        costs.append(_cost(points[list(best[0])], points[list(best[1])]))
        clusters = [c for c in clusters if c not in best] + [best[0] | best[1]]
        partitions.append(list(clusters))
    return costs, partitions


def _partition(column: Tensor) -> set[frozenset[int]]:
    return {frozenset((column == label).nonzero()[:, 0].tolist()) for label in column.unique()}


@pytest.mark.parametrize("kernel", [1, 3])
def test_merge_costs_and_partitions_are_those_of_the_naive_clustering(kernel: int) -> None:
    points = kernel_sets(_weight(9, 3, kernel))
    for channel, tree in zip(points, trees(points), strict=True):
        costs, partitions = _naive(channel)
        assert [merge_cost(tree, step) for step in range(1, 9)] == pytest.approx(costs)
        for step in range(1, 9):
            found = labels([tree], layer_cut([tree], step))[:, 0]
            assert _partition(found) == set(partitions[step])


@pytest.mark.parametrize("keep", [1, 4, 7])
def test_every_channel_makes_all_merges_up_to_the_dearest_last_one(keep: int) -> None:
    weight = _weight(9, 5)
    naive = [_naive(channel) for channel in kernel_sets(weight)]
    cut = max(costs[9 - keep - 1] for costs, _ in naive)
    for column, (costs, partitions) in zip(kernel_clusters(weight, keep).T, naive, strict=True):
        assert _partition(column) == set(partitions[sum(cost <= cut * (1 + 1e-9) for cost in costs)])


@given(st.integers(0, 50), st.integers(1, 12))
@settings(max_examples=25, deadline=None)
def test_the_channel_with_most_clusters_has_as_many_as_filters_stay(seed: int, keep: int) -> None:
    assert max(len(column.unique()) for column in kernel_clusters(_weight(12, 5, seed=seed), keep).T) == keep


def test_nothing_to_remove_leaves_every_kernel_alone() -> None:
    assert kernel_clusters(_weight(6, 2), 6).tolist() == [[i, i] for i in range(6)]
    assert merge_cost(trees(kernel_sets(_weight(6, 1)))[0], 0) == 0.0


def test_a_loud_channel_sets_the_cut_unless_channels_are_normalised() -> None:
    weight = _weight(16, 4)
    weight[:, 0] *= 100
    counts = [len(column.unique()) for column in kernel_clusters(weight, 8).T]
    assert counts == [8, 1, 1, 1]
    assert min(len(column.unique()) for column in kernel_clusters(weight, 8, normalise=True).T) > 1


def test_a_channel_without_weights_is_one_cluster() -> None:
    weight = _weight(8, 2)
    weight[:, 1] = 0.0
    for normalise in (False, True):
        assert len(kernel_clusters(weight, 4, normalise)[:, 1].unique()) == 1


def test_threads_change_nothing() -> None:
    weight = _weight(12, 6)
    assert torch.equal(kernel_clusters(weight, 5), kernel_clusters(weight, 5, workers=2))
