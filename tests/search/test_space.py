"""The space: shares that add up, no two points alike, impossible spaces refused."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crepe.criteria import Coefficients
from crepe.errors import UsageError
from crepe.search.space import Space, random_points


@given(st.integers(0, 10_000))
def test_points_become_shares(seed: int) -> None:
    (point,) = random_points(Space(), 1, seed)
    found = Space().coefficients(point)
    assert found.row + found.column + found.neighbourhood == pytest.approx(1)
    assert (found.form, found.kernel, found.activation) == (point["form"], point["kernel"], point["activation"])


@given(st.integers(0, 10_000), st.floats(0.1, 10))
def test_a_score_gives_its_point_back_at_any_scale(seed: int, scale: float) -> None:
    """Coefficients that differ by a factor alone mean the same masks; the space has one point for all of them."""
    (point,) = random_points(Space(), 1, seed)
    found = Space().coefficients(point)
    row, column, near = (scale * value for value in (found.row, found.column, found.neighbourhood))
    assert row / (row + column) == pytest.approx(point["balance"])
    assert near / (row + column + near) == pytest.approx(point["neighbourhood"])


def test_what_the_space_holds() -> None:
    ria = Coefficients()
    assert Space().holds(ria) and Space(groups=("attention", "mlp")).holds(ria)
    for narrow in ({"balance": (0.9, 1.0)}, {"neighbourhood": (0.1, 0.2)}, {"activation": (0.6, 1.0)}):
        assert not Space(**narrow).holds(ria)


def test_groups_have_coefficients_of_their_own() -> None:
    space = Space(groups=("attention", "mlp"))
    (point,) = random_points(space, 1, 3)
    found = space.coefficients(point)
    assert found.of("attention").activation == point["attention.activation"]
    assert found.of("mlp").activation == point["mlp.activation"] and found.of("mlp") is found


def test_a_choice_of_one_is_no_parameter() -> None:
    space = Space(forms=("product",), kernels=(5,))
    assert space.categorical == {}
    found = space.coefficients(random_points(space, 1, 0)[0])
    assert (found.form, found.kernel) == ("product", 5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"balance": (0.5, 0.5)}, "balance 0.5,0.5"),
        ({"neighbourhood": (0.2, 1.2)}, "neighbourhood 0.2,1.2"),
        ({"activation": (1.0, 0.0)}, "activation 1,0"),
        ({"forms": ("round",)}, "form 'round'"),
        ({"forms": ()}, "no forms"),
        ({"kernels": (4,)}, "kernel 4"),
        ({"kernels": ()}, "no kernels"),
    ],
)
def test_impossible_spaces(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Space(**fields)
