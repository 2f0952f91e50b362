"""Moments of layer inputs: those of the tokens and unfolded images, whatever the batches."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from crepe.errors import CrepeError
from crepe.vision.moments import input_moments, input_rows

CPU = torch.device("cpu")


def _model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 5, (3, 2), 2, 1), nn.Flatten(2), nn.Linear(16, 4)
    )


IMAGES = torch.randn(6, 3, 8, 7, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", ["0", "2", "4"])
def test_rows_times_weights_are_the_layer(name: str) -> None:
    model = _model()
    inputs = model[: int(name)](IMAGES)
    layer = model.get_submodule(name)
    product = input_rows(layer, inputs) @ layer.weight.flatten(1).T + layer.bias
    expected = layer(inputs)
    expected = expected.flatten(2).transpose(1, 2) if expected.dim() == 4 else expected
    torch.testing.assert_close(product, expected.flatten(0, 1))


def test_moments_do_not_depend_on_the_batches() -> None:
    model = _model()
    names = ["0", "2", "4"]
    whole, parts = (input_moments(model, names, IMAGES.split(size), CPU) for size in (6, 1))
    for name in names:
        rows = input_rows(model.get_submodule(name), model[: int(name)](IMAGES))
        torch.testing.assert_close(whole[name].mean, rows.mean(0))
        torch.testing.assert_close(whole[name].covariance, torch.cov(rows.T, correction=0), rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(parts[name].covariance, whole[name].covariance)
    assert not any(module._forward_pre_hooks for module in model)


def test_layers_that_cannot_be_unfolded_or_never_ran_are_named() -> None:
    with pytest.raises(CrepeError, match="groups=3"):
        input_rows(nn.Conv2d(3, 3, 3, groups=3), IMAGES)
    with pytest.raises(CrepeError, match="layer '0' saw no input"):
        input_moments(_model(), ["0"], [], CPU)
