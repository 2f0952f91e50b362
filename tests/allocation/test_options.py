"""A choice among few sparsities: the guarantee, and brute force on tiny instances."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crepe.allocation import ALLOCATIONS, Budget
from crepe.allocation.curves import Curve, cheapest_first
from crepe.allocation.options import least_loss_options, options_of
from crepe.errors import CrepeError
from crepe.masks import parse_pattern

MIX = parse_pattern("dense+2:4+1:4")
OPTIONS = (0.0, 0.5, 0.75)
SHAPES = st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), min_size=3, max_size=3)
RISES = st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), min_size=3, max_size=3)


def _instance(
    shapes: list[tuple[int, int]], rises: list[tuple[int, int]], sparsity: float
) -> tuple[Budget, dict[str, Curve]]:
    """Three tensors whose losses rise with their sparsity."""
    budget = Budget({str(i): (out, 4 * groups) for i, (out, groups) in enumerate(shapes)}, sparsity, {}, MIX)
    sizes = budget.sizes
    losses = [(0, first, first + second) for first, second in rises]
    curves: dict[str, Curve] = {
        str(i): [(s, e / sizes[str(i)]) for s, e in zip(OPTIONS, losses[i], strict=True)] for i in range(3)
    }
    return budget, curves


def _loss(budget: Budget, curves: dict[str, Curve], chosen: dict[str, float]) -> float:
    return sum(budget.sizes[name] * dict(curves[name])[s] for name, s in chosen.items())


def _zeros(budget: Budget, chosen: dict[str, float]) -> int:
    return sum(round(budget.sizes[name] * s) for name, s in chosen.items())


def _best(budget: Budget, curves: dict[str, Curve], zeros: int) -> float:
    """The least loss of all choices with at least `zeros` zeros."""
    choices = (dict(zip(curves, options, strict=True)) for options in itertools.product(OPTIONS, repeat=3))
    return min(_loss(budget, curves, chosen) for chosen in choices if _zeros(budget, chosen) >= zeros)


@given(SHAPES, RISES, st.floats(0, 0.75))
def test_guarantee(shapes: list[tuple[int, int]], rises: list[tuple[int, int]], sparsity: float) -> None:
    budget, curves = _instance(shapes, rises, sparsity)
    chosen = least_loss_options(curves, budget)
    zeros, loss = _zeros(budget, chosen), _loss(budget, curves, chosen)
    assert budget.zeros <= zeros < budget.zeros + max(budget.sizes.values())
    # Never better than the best, never worse than the best for one tensor's weights more.
    most = sum(round(size * 0.75) for size in budget.sizes.values())
    assert loss >= _best(budget, curves, budget.zeros) - 1e-9
    assert loss <= _best(budget, curves, min(most, budget.zeros + max(budget.sizes.values()))) + 1e-9


@given(SHAPES, RISES)
def test_error_is_the_best_where_whole_tensors_meet_the_budget(
    shapes: list[tuple[int, int]], rises: list[tuple[int, int]]
) -> None:
    """The budgets are those that the hull segments add up to, one after the other."""
    budget, curves = _instance(shapes, rises, 0.0)
    summaries = {name: tuple(budget.sizes[name] * loss for _, loss in curve) for name, curve in curves.items()}
    chosen = dict.fromkeys(curves, 0.0)
    for step in cheapest_first(curves):
        chosen[step.name] = step.end
        zeros = _zeros(budget, chosen)
        exact = replace(budget, sparsity=zeros / sum(budget.sizes.values()))
        found = ALLOCATIONS.get("error").divide(summaries, exact)
        assert zeros <= _zeros(budget, found) and exact.zeros == zeros
        assert _loss(budget, curves, found) == pytest.approx(_best(budget, curves, zeros))


def test_options_of_a_tensor_fit_its_shape_and_bounds() -> None:
    mix = parse_pattern("dense+2:4+4:8+2:8")
    budget = Budget({"a": (2, 8), "b": (2, 12), "c": (2, 7), "d": (2, 8)}, 0.3, {"d": (0.4, 0.6)}, mix)
    assert [options_of(name, budget) for name in "abcd"] == [(0.0, 0.5, 0.75), (0.0, 0.5), (0.0,), (0.5,)]
    narrow = Budget({"a": (2, 8)}, 0.3, {"a": (0.2, 0.4)}, mix)
    with pytest.raises(CrepeError, match=r"'a'.*no option lies within 0\.2:0\.4"):
        options_of("a", narrow)


def test_a_budget_above_the_highest_option_is_named() -> None:
    budget, curves = _instance([(4, 4)] * 3, [(1, 1)] * 3, 0.8)
    with pytest.raises(CrepeError, match=r"sparsity 0\.8 is out of reach.*dense\+2:4\+1:4 allow 0 to 0\.75"):
        least_loss_options(curves, budget)
