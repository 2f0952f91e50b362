"""Compensation: exact where the kept inputs know everything, optimal against a direct regression."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from crepe.vision.compensation import Moments, compensate, fold_mean, moments_of, transformed


def _layer(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """inputs (tokens, 8) with a mean, weight (5, 8), bias (5,)."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(8, 8, generator=generator)
    inputs = torch.randn(300, 8, generator=generator) @ mixing + 2 * torch.randn(8, generator=generator)
    return inputs, torch.randn(5, 8, generator=generator), torch.randn(5, generator=generator)


def _moments(inputs: Tensor) -> Moments:
    return moments_of(inputs.sum(0), inputs.T @ inputs, len(inputs))


KEPT = torch.tensor([0, 2, 3, 6])


def _error(layer: tuple[Tensor, Tensor, Tensor], weight: Tensor, bias: Tensor | None) -> float:
    inputs, dense, dense_bias = layer
    output = inputs[:, KEPT] @ weight.T + (0 if bias is None else bias)
    return float((output - inputs @ dense.T - dense_bias).square().mean())


def test_moments_are_mean_and_covariance() -> None:
    inputs, _, _ = _layer()
    found = _moments(inputs)
    torch.testing.assert_close(found.mean, inputs.mean(0))
    torch.testing.assert_close(found.covariance, torch.cov(inputs.T, correction=0), rtol=1e-3, atol=1e-3)
    turn = torch.randn(3, 8, generator=torch.Generator().manual_seed(1))
    expected = _moments(inputs @ turn.T)
    torch.testing.assert_close(transformed(found, turn).covariance, expected.covariance, rtol=1e-3, atol=1e-3)


def test_folding_the_mean_leaves_no_mean_error() -> None:
    inputs, weight, bias = _layer()
    small, folded = fold_mean(weight, bias, KEPT, inputs.mean(0))
    assert torch.equal(small, weight[:, KEPT])
    lost = inputs @ weight.T + bias - inputs[:, KEPT] @ small.T - folded
    torch.testing.assert_close(lost.mean(0), torch.zeros(5), rtol=0, atol=1e-4)


def test_without_damping_it_is_the_regression_of_the_output() -> None:
    inputs, weight, bias = _layer()
    found, shifted = compensate(weight, bias, KEPT, _moments(inputs), 1e-7)
    known = torch.cat([inputs[:, KEPT], torch.ones(len(inputs), 1)], dim=1)
    direct = torch.linalg.lstsq(known, inputs @ weight.T + bias).solution.T
    torch.testing.assert_close(torch.cat([found, shifted[:, None]], dim=1), direct, rtol=1e-2, atol=1e-2)


def test_redundant_inputs_are_made_up_for_exactly() -> None:
    inputs, weight, bias = _layer()
    inputs[:, 1], inputs[:, 7] = inputs[:, 0] - 3, 2 * inputs[:, 2] + inputs[:, 6]
    inputs[:, 4], inputs[:, 5] = 1.5, inputs[:, 3]
    layer = inputs, weight, bias
    assert _error(layer, *compensate(weight, bias, KEPT, _moments(inputs), 1e-8)) < 1e-4


def test_each_repair_is_better_than_the_one_before() -> None:
    layer = inputs, weight, bias = _layer()
    moments = _moments(inputs)
    plain = _error(layer, weight[:, KEPT], bias)
    folded = _error(layer, *fold_mean(weight, bias, KEPT, moments.mean))
    fitted = _error(layer, *compensate(weight, bias, KEPT, moments))
    assert fitted < folded < plain


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_keeping_everything_changes_nothing_and_keeps_the_dtype(dtype: torch.dtype) -> None:
    inputs, weight, _ = _layer()
    found, bias = compensate(weight.to(dtype), None, torch.arange(8), _moments(inputs))
    assert found.dtype == dtype and torch.equal(found, weight.to(dtype))
    torch.testing.assert_close(bias.float(), torch.zeros(5), rtol=0, atol=1e-4)
