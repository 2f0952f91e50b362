"""Scores against naive float64 formulas, and what every criterion must do."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from crepe.criteria import CRITERIA, Coefficients, score
from crepe.criteria.crepe import crepe_score
from crepe.criteria.neighbourhood import neighbourhood_term
from crepe.criteria.ria import ria_score
from crepe.criteria.wanda import wanda_score
from crepe.errors import CrepeError
from crepe.masks import select_largest

SHAPES = [(7, 13), (64, 48), (96, 256)]


def _case(shape: tuple[int, int], dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(shape[0])
    weight = torch.randn(shape, generator=generator).to(dtype)
    return weight, torch.rand(shape[1], generator=generator) * 30 + 0.01


def _naive_ria(weight: Tensor, norm: Tensor, exponent: float) -> Tensor:
    size = weight.double().abs()
    rows, columns = size.sum(1), size.sum(0)
    result = torch.zeros_like(size)
    for i in range(size.shape[0]):
        for j in range(size.shape[1]):
            share = size[i, j] / rows[i] + size[i, j] / columns[j]
            result[i, j] = share * norm.double()[j] ** exponent
    return result


def _naive_box(size: Tensor, i: int, j: int, kernel: int) -> Tensor:
    half = kernel // 2
    return size[max(0, i - half) : i + half + 1, max(0, j - half) : j + half + 1].mean()


@pytest.mark.parametrize("shape", SHAPES)
def test_ria_and_wanda_match_float64(shape: tuple[int, int]) -> None:
    weight, norm = _case(shape)
    for found, naive in (
        (ria_score(weight, norm), _naive_ria(weight, norm, 0.5)),
        (wanda_score(weight, norm), weight.double().abs() * norm.double()),
    ):
        assert float(((found.double() - naive).abs() / naive).max()) < 1e-5
        keep = weight.numel() // 2
        assert torch.equal(select_largest(found.reshape(1, -1), keep), select_largest(naive.reshape(1, -1), keep))


@pytest.mark.parametrize("form", ["relative", "context", "product"])
@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_neighbourhood_matches_the_formula(form: str, kernel: int) -> None:
    size = _case((9, 11))[0].abs()
    found = neighbourhood_term(size, form, kernel)
    exact = size.double()
    for i in range(9):
        for j in range(11):
            box, mean = _naive_box(exact, i, j, kernel), exact.mean()
            naive = {"relative": exact[i, j] / box, "context": box / mean, "product": exact[i, j] * box / mean**2}[form]
            assert abs(float(found[i, j]) - float(naive)) < 1e-5 * abs(float(naive))


@pytest.mark.parametrize("shape", SHAPES)
def test_ria_is_the_corner_of_crepe(shape: tuple[int, int]) -> None:
    weight, norm = _case(shape)
    corner = crepe_score(weight, norm, Coefficients(row=1, column=1, neighbourhood=0, activation=0.5))
    ratio = corner / ria_score(weight, norm)
    torch.testing.assert_close(ratio, ratio[0, 0].expand_as(ratio), rtol=1e-5, atol=0)


@pytest.mark.parametrize("form", ["relative", "context", "product"])
def test_terms_do_not_depend_on_the_size_of_the_matrix(form: str) -> None:
    means = []
    for shape in ((64, 64), (512, 128)):
        weight = torch.randn(shape, generator=torch.Generator().manual_seed(1))
        one = torch.ones(shape[1])
        for row, column, neighbourhood in ((1, 0, 0), (0, 1, 0), (0, 0, 1)):
            parts = Coefficients(row=row, column=column, neighbourhood=neighbourhood, form=form)
            means.append(float(crepe_score(weight, one, parts).mean()))
    assert all(0.3 < mean < 3 for mean in means), means


@pytest.mark.parametrize("name", CRITERIA.names())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_conformance(name: str, dtype: torch.dtype) -> None:
    weight, norm = _case((12, 20), dtype)
    weight[3], weight[:, 5] = 0, 0
    before, criterion = weight.clone(), CRITERIA.get(name)
    for form in ("relative", "context", "product"):
        coefficients = Coefficients(neighbourhood=0.3, form=form)
        found = score(criterion, weight, {"norm": norm}, coefficients)
        assert found.dtype == torch.float32 and found.shape == weight.shape
        assert torch.isfinite(found).all() and (found >= 0).all()
        assert torch.equal(found, score(criterion, -weight, {"norm": norm}, coefficients))
    assert torch.equal(weight, before)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_broken_numbers_are_named(bad: float) -> None:
    weight, norm = _case((4, 6))
    weight[1, 2] = bad
    with pytest.raises(CrepeError, match=r"weights of 'layer.weight' hold 1 NaN or infinite"):
        score(CRITERIA.get("crepe"), weight, {"norm": norm}, Coefficients(), "layer.weight")
    weight, norm = _case((4, 6))
    norm[0] = bad
    with pytest.raises(CrepeError, match="activation statistics"):
        score(CRITERIA.get("ria"), weight, {"norm": norm}, Coefficients(), "layer.weight")
