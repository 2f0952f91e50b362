"""The space: shares that add up, no two points alike, impossible spaces refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from crepe.criteria.crepe import crepe_score
from crepe.errors import UsageError
from crepe.masks import parse_pattern
from crepe.search.space import Space, random_points


@given(st.integers(0, 10_000))
def test_points_become_shares(seed: int) -> None:
    (point,) = random_points(Space(), 1, seed)
    found = Space().coefficients(point)
    assert found.row + found.column + found.neighbourhood == pytest.approx(1)
    assert (found.form, found.kernel, found.activation) == (point["form"], point["kernel"], point["activation"])


def test_two_points_mean_two_scores() -> None:
    torch.manual_seed(0)
    weight, norm, pattern = torch.randn(64, 64), torch.rand(64) + 0.1, parse_pattern("unstructured")
    points = random_points(Space(), 30, 0)
    masks = [
        pattern.select(crepe_score(weight, norm, Space().coefficients(point)), 0.5, "tensor").numpy().tobytes()
        for point in points
    ]
    assert len(set(masks)) == len(points)


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
