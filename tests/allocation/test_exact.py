"""The exact budget: integer counts add up, bounds hold, and what cannot be met is said in one line."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crepe.allocation import Budget
from crepe.allocation.exact import exact_sparsities
from crepe.errors import CrepeError
from crepe.masks import Unstructured, kept_count

Tensor = tuple[int, int, float, float, float]  # out, in, wish, and two bounds
TENSOR = st.tuples(st.integers(1, 40), st.integers(1, 40), st.floats(-0.5, 1.5), st.floats(0, 1), st.floats(0, 1))


def _budget(tensors: list[Tensor], sparsity: float) -> tuple[Budget, dict[str, float], dict[str, tuple[float, float]]]:
    shapes = {str(i): (out, inputs) for i, (out, inputs, *_) in enumerate(tensors)}
    bounds = {str(i): (min(ends), max(ends)) for i, (_, _, _, *ends) in enumerate(tensors)}
    wishes = {str(i): wish for i, (_, _, wish, _, _) in enumerate(tensors)}
    return Budget(shapes, sparsity, bounds, Unstructured()), wishes, bounds


def _zeros(budget: Budget, sparsities: dict[str, float]) -> dict[str, int]:
    return {name: size - kept_count(size, sparsities[name]) for name, size in budget.sizes.items()}


@given(st.lists(TENSOR, min_size=1, max_size=8), st.floats(0, 0.999))
def test_counts_add_up_within_the_bounds(tensors: list[Tensor], sparsity: float) -> None:
    budget, wishes, bounds = _budget(tensors, sparsity)
    total = sum(budget.sizes.values())
    try:
        found = exact_sparsities(wishes, budget, bounds)
    except CrepeError as error:
        # Whole weights may cost or bring up to one zero per tensor against the bounds.
        reach = [sum(size * bounds[name][end] for name, size in budget.sizes.items()) for end in (0, 1)]
        assert not reach[0] + len(tensors) < budget.zeros < reach[1] - len(tensors)
        assert "out of reach" in str(error) and "\n" not in str(error)
        return
    zeros = _zeros(budget, found)
    assert sum(zeros.values()) == total - kept_count(total, sparsity)
    for name, size in budget.sizes.items():
        low, high = bounds[name]
        inside = math.ceil(size * low - 1e-6) <= zeros[name] <= math.floor(size * high + 1e-6)
        assert inside or abs(zeros[name] - size * (low + high) / 2) < 1


@given(st.lists(TENSOR, min_size=2, max_size=8), st.floats(0.05, 0.95))
def test_tensors_inside_their_bounds_are_shifted_alike(tensors: list[Tensor], sparsity: float) -> None:
    budget, wishes, _ = _budget(tensors, sparsity)
    found = exact_sparsities(wishes, budget, dict.fromkeys(wishes, (0.0, 1.0)))
    slack = {name: 1.5 / size for name, size in budget.sizes.items()}
    shifts = {name: found[name] - wishes[name] for name in found}
    free = [name for name in found if slack[name] < found[name] < 1 - slack[name]]
    for name in free:
        assert abs(shifts[name] - shifts[free[0]]) <= slack[name] + slack[free[0]] + 1e-9


def test_right_wishes_stay_as_they_are() -> None:
    budget = Budget({"a": (7, 5), "b": (4, 33)}, 0.5, {}, Unstructured())
    found = exact_sparsities({"a": 0.5, "b": 0.5}, budget, {"a": (0, 1), "b": (0, 1)})
    assert found == {"a": 0.5, "b": 0.5} and _zeros(budget, found) == {"a": 18, "b": 66}


def test_a_tensor_can_be_pinned_where_its_share_is_no_whole_number() -> None:
    budget = Budget({"a": (5, 7), "b": (10, 10)}, 0.5, {}, Unstructured())
    found = exact_sparsities({"a": 0.5, "b": 0.5}, budget, {"a": (0.5, 0.5), "b": (0, 1)})
    assert _zeros(budget, found) == {"a": 18, "b": 50}


def test_all_tensors_can_be_pinned_to_the_target() -> None:
    budget = Budget({str(i): (5, 7) for i in range(9)}, 0.5, {}, Unstructured())
    wishes = dict.fromkeys(budget.shapes, 0.5)
    found = exact_sparsities(wishes, budget, dict.fromkeys(wishes, (0.5, 0.5)))
    assert set(_zeros(budget, found).values()) == {17, 18} and sum(_zeros(budget, found).values()) == budget.zeros


def test_an_impossible_budget_names_the_range() -> None:
    budget = Budget({"a": (10, 10), "b": (10, 10)}, 0.8, {}, Unstructured())
    with pytest.raises(CrepeError, match=r"sparsity 0\.8 is out of reach.*allow 0\.1 to 0\.55"):
        exact_sparsities({"a": 0.8, "b": 0.8}, budget, {"a": (0.2, 0.3), "b": (0.0, 0.8)})
