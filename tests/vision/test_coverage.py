"""Greedy coverage against a naive greedy and against every choice there is."""

from __future__ import annotations

import itertools
import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from crepe.vision.coverage import cover, covered


def _clusters(out: int, channels: int, labels: int, seed: int) -> Tensor:
    return torch.randint(0, labels, (out, channels), generator=torch.Generator().manual_seed(seed))


def _naive(clusters: list[list[int]], keep: int) -> list[int]:
    chosen: list[int] = []
    seen: set[tuple[int, int]] = set()
    for _ in range(keep):
        gains = {i: len(set(enumerate(row)) - seen) for i, row in enumerate(clusters) if i not in chosen}
        best = max(gains, key=lambda i: (gains[i], -i))
        chosen.append(best)
        seen |= set(enumerate(clusters[best]))
    return chosen


@given(st.integers(1, 9), st.integers(1, 6), st.integers(1, 6), st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_the_order_is_that_of_the_naive_greedy(out: int, channels: int, labels: int, seed: int) -> None:
    clusters = _clusters(out, channels, labels, seed)
    assert cover(clusters, out).tolist() == _naive(clusters.tolist(), out)


@given(st.integers(1, 7), st.integers(1, 7), st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_greedy_covers_at_least_its_share_of_the_best_choice(keep: int, labels: int, seed: int) -> None:
    clusters = _clusters(8, 5, labels, seed)
    best = max(covered(clusters, torch.tensor(choice)) for choice in itertools.combinations(range(8), keep))
    assert covered(clusters, cover(clusters, keep)) >= (1 - 1 / math.e) * best


def test_ties_go_to_the_higher_priority_and_then_to_the_lower_index() -> None:
    clusters = torch.zeros(4, 3, dtype=torch.long)
    assert cover(clusters, 4).tolist() == [0, 1, 2, 3]
    assert cover(clusters, 4, torch.tensor([1.0, 2.0, 2.0, 0.0])).tolist() == [1, 2, 0, 3]


def test_priority_never_beats_coverage() -> None:
    clusters = torch.tensor([[0, 0], [0, 1], [1, 2]])
    assert cover(clusters, 2, torch.tensor([9.0, 8.0, 1.0])).tolist() == [0, 2]
