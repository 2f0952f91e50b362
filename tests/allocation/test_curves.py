"""Least loss under a budget: against brute force over a fine grid, and the order of the steps."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crepe.allocation import Budget
from crepe.allocation.curves import cheapest_first, least_loss, lower_hull
from crepe.masks import Unstructured

GRID = (0.2, 0.4, 0.6, 0.8)


def _on_hull(curve: list[tuple[float, float]], sparsity: float) -> float:
    """The hull read at `sparsity`: the lowest chord over it."""
    chords = [
        left[1] + (right[1] - left[1]) * (sparsity - left[0]) / (right[0] - left[0])
        for left, right in itertools.combinations(curve, 2)
        if left[0] - 1e-9 <= sparsity <= right[0] + 1e-9
    ]
    return min(chords)


def test_hull_leaves_out_what_lies_above_a_chord() -> None:
    assert lower_hull([(0, 0), (1, 2), (2, 2), (3, 3), (4, 9)]) == [(0, 0), (2, 2), (3, 3), (4, 9)]


@given(st.lists(st.lists(st.integers(0, 30), min_size=4, max_size=4), min_size=3, max_size=3), st.integers(2, 8))
def test_least_loss_against_brute_force(losses: list[list[int]], tenths: int) -> None:
    """Three tensors of equal size: every division in steps of 0.05 of which the last tensor is the remainder."""
    curves = {str(i): list(zip(GRID, map(float, loss), strict=True)) for i, loss in enumerate(losses)}
    budget = Budget({str(i): (10, 10) for i in range(3)}, tenths / 10, {}, Unstructured())
    found = least_loss(curves, budget)
    assert sum(found.values()) == pytest.approx(3 * tenths / 10)
    fine = [0.2 + 0.05 * i for i in range(13)]
    best = min(
        sum(_on_hull(curves[str(i)], s) for i, s in enumerate((a, b, 3 * tenths / 10 - a - b)))
        for a, b in itertools.product(fine, fine)
        if 0.2 - 1e-9 <= 3 * tenths / 10 - a - b <= 0.8 + 1e-9
    )
    assert sum(_on_hull(curves[name], s) for name, s in found.items()) == pytest.approx(best, abs=1e-6)


def test_equal_steps_lie_evenly_over_the_depth() -> None:
    curves = {str(i): [(0.0, 0.0), (0.5, 1.0), (1.0, 2.0)] for i in range(100)}
    steps = cheapest_first(curves)
    assert all(step.start == 0 for step in steps[:100])
    taken = sorted(int(step.name) for step in steps[:50])
    assert max(b - a for a, b in itertools.pairwise(taken)) <= 3
