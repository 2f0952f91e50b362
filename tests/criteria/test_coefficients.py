"""The coefficient file: round trip, defaults for every pattern, bad content."""

from __future__ import annotations

from pathlib import Path

import pytest

from crepe.criteria import Coefficients
from crepe.criteria.defaults import default_coefficients
from crepe.errors import CrepeError, UsageError


def test_round_trip(tmp_path: Path) -> None:
    wanted = Coefficients(0.7, 0.2, 0.1, "product", 5, 0.9, origin={"pattern": "2:4", "seed": 3})
    wanted.save(tmp_path / "c.yaml")
    found = Coefficients.load(tmp_path / "c.yaml")
    assert found == wanted and found.origin == wanted.origin


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("row: 1\ncolum: 2", "did you mean 'column'"),
        ("row: many", "must be numbers"),
        ("row: -1", "row = -1.0"),
        ("row: 0\ncolumn: 0", "all coefficients are 0"),
        ("kernel: 4", "kernel = 4"),
        ("form: square", "neighbourhood form 'square'"),
        ("- 1", "expected a YAML mapping"),
        ("groups: {attn: {row: 1}}", "did you mean 'attention'"),
        ("groups: {mlp: {row: x}}", "group mlp: coefficients must be numbers"),
        ("groups: 3", "groups: expected a YAML mapping"),
    ],
)
def test_bad_content(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match=message):
        Coefficients.load(path)


@pytest.mark.parametrize("text", ["row: [1", None])
def test_unreadable(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "c.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(CrepeError, match=r"c.yaml"):
        Coefficients.load(path)


@pytest.mark.parametrize(
    ("pattern", "sparsity"), [("unstructured", 0.5), ("2:4", 0.5), ("unstructured", 0.9), ("1:4", 0.75)]
)
def test_there_are_defaults_for_every_pattern(pattern: str, sparsity: float) -> None:
    found = default_coefficients(pattern, sparsity)
    shipped = {"unstructured", "2:4", "4:8"}
    assert found.origin["pattern"] == (pattern if pattern in shipped else "unstructured")


@pytest.mark.parametrize(("sparsity", "nearest"), [(0.5, 0.5), (0.54, 0.5), (0.6, 0.6), (0.9, 0.6)])
def test_the_default_is_that_of_the_nearest_sparsity(sparsity: float, nearest: float) -> None:
    assert default_coefficients("unstructured", sparsity).origin["sparsity"] == nearest


def test_groups_go_through_the_file(tmp_path: Path) -> None:
    wanted = Coefficients(0.7, 0.3, groups={"attention": Coefficients(0.1, 0.9, activation=1.2)})
    wanted.save(tmp_path / "c.yaml")
    found = Coefficients.load(tmp_path / "c.yaml")
    assert found == wanted and found.of("attention").column == 0.9 and found.of("mlp") is found
