"""Bounds: texts that parse, texts that do not, and the limits of a rule."""

from __future__ import annotations

import pytest

from crepe.allocation import Budget
from crepe.allocation.bounds import limits, parse_bounds
from crepe.errors import UsageError
from crepe.masks import Unstructured

NAMES = ["layers.0.q_proj.weight", "layers.0.v_proj.weight", "layers.1.v_proj.weight"]


def test_the_last_match_wins() -> None:
    found = parse_bounds(["*.v_proj.*=0.3:0.6", "layers.1.*=0:1"], NAMES)
    assert found == {"layers.0.v_proj.weight": (0.3, 0.6), "layers.1.v_proj.weight": (0.0, 1.0)}
    assert parse_bounds([], NAMES) == {}


@pytest.mark.parametrize(
    "text", ["", "*", "*=", "*=0.5", "=0.1:0.2", "*=a:b", "*=0.6:0.3", "*=-0.1:0.5", "*=0.5:1.1", "*=nan:1", "*=0:1:2"]
)
def test_nonsense_is_named(text: str) -> None:
    with pytest.raises(UsageError, match="GLOB=LOW:HIGH") as caught:
        parse_bounds([text], NAMES)
    assert repr(text) in str(caught.value) and "\n" not in str(caught.value)


def test_a_glob_that_matches_nothing_is_named() -> None:
    with pytest.raises(UsageError, match=r"'\*\.o_proj\.\*' matches no pruned tensor.*layers\.0\.q_proj\.weight"):
        parse_bounds(["*.o_proj.*=0:1"], NAMES)


def test_limits_are_those_of_the_user_or_around_the_target() -> None:
    budget = Budget({"a": (10, 10), "b": (10, 10)}, 0.5, {"a": (0.0, 0.9)}, Unstructured())
    assert limits(budget, 0.15) == {"a": (0.0, 0.9), "b": (0.35, 0.65)}
    assert limits(budget) == {"a": (0.0, 0.9), "b": (0.0, 0.875)}


def test_limits_of_a_rule_give_way_to_the_budget() -> None:
    budget = Budget({"a": (10, 10), "b": (10, 10)}, 0.5, {"a": (0.1, 0.1)}, Unstructured())
    assert limits(budget, 0.15) == {"a": (0.1, 0.1), "b": (0.0, 1.0)}
