"""Readers fitted before a cut: closer to the dense network with a bias, with a batch norm, and with neither."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from crepe.vision.moments import input_moments
from crepe.vision.readers import fit_to_kept

IMAGES = torch.randn(16, 3, 6, 6, generator=torch.Generator().manual_seed(1))
REMOVED = torch.tensor([1, 4, 5])


def _model(bias: bool) -> nn.Sequential:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 2, bias=bias), nn.BatchNorm2d(4)
    return nn.Sequential(*layers).eval()


def _masked(model: nn.Sequential) -> nn.Sequential:
    pruned = copy.deepcopy(model)
    with torch.no_grad():
        pruned[0].weight[REMOVED] = 0.0
        pruned[0].bias[REMOVED] = 0.0
    return pruned


def _kept(model: nn.Sequential, removed: torch.Tensor) -> dict[str, torch.Tensor]:
    """What layer 2 keeps without the input channels `removed`."""
    kept = torch.ones_like(model[2].weight, dtype=torch.bool)
    kept[:, removed] = False
    return {"2": kept}


@pytest.mark.parametrize(("bias", "norms"), [(True, {}), (False, {"2": "3"}), (False, {})])
def test_the_output_comes_closer_and_removed_channels_are_not_read(bias: bool, norms: dict[str, str]) -> None:
    model = _model(bias)
    pruned = _masked(model)
    before = (pruned(IMAGES) - model(IMAGES)).square().sum()
    moments = input_moments(model, ["2"], [IMAGES], torch.device("cpu"))
    fit_to_kept(pruned, _kept(pruned, REMOVED), moments, norms, 0.01)
    assert (pruned(IMAGES) - model(IMAGES)).square().sum() < 0.5 * before
    assert not pruned[2].weight[:, REMOVED].any()
    if bias or norms:
        torch.testing.assert_close(pruned(IMAGES).mean((0, 2, 3)), model(IMAGES).mean((0, 2, 3)), rtol=1e-3, atol=1e-4)


def test_a_linear_layer_is_written_too() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.GELU(), nn.Linear(8, 3))
    tokens = torch.randn(30, 4, 5)
    dense = model(tokens)
    moments = input_moments(model, ["2"], [tokens], torch.device("cpu"))
    fit_to_kept(model, _kept(model, REMOVED), moments)
    assert not model[2].weight[:, REMOVED].any()
    torch.testing.assert_close(model(tokens).mean((0, 1)), dense.mean((0, 1)), rtol=1e-3, atol=1e-4)


def test_nothing_removed_changes_nothing() -> None:
    model = _model(True)
    before = copy.deepcopy(model.state_dict())
    moments = input_moments(model, ["2"], [IMAGES], torch.device("cpu"))
    fit_to_kept(model, _kept(model, torch.tensor([], dtype=torch.long)), moments)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name])
