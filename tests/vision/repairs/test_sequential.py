"""Fits layer by layer: closer than fits on the inputs of the dense network, and nothing else is touched."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from crepe.errors import CrepeError
from crepe.vision.cut import hold
from crepe.vision.removal import Removal
from crepe.vision.repairs import REPAIRS

IMAGES = torch.randn(24, 3, 10, 10, generator=torch.Generator().manual_seed(1))
BATCHES = [(part, torch.zeros(0)) for part in IMAGES.split(8)]


def _model() -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for inputs in (3, 16, 16, 16):
        layers += [nn.Conv2d(inputs, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(1600, 4)).eval()


def _removal(model: nn.Sequential, names: tuple[str, ...]) -> Removal:
    generator = torch.Generator().manual_seed(2)
    kept = {n: torch.rand(model.get_submodule(n).weight.shape, generator=generator) < 0.6 for n in names}
    return Removal(kept, {name: str(int(name) + 1) for name in names if name != "13"})


def _repaired(model: nn.Sequential, removal: Removal, repair: str) -> nn.Sequential:
    found = copy.deepcopy(model)
    with torch.no_grad():
        REPAIRS.get(repair).before(found, removal, BATCHES)
    hold(found, {f"{name}.weight": mask for name, mask in removal.kept.items()})
    return found


def _error(model: nn.Module, other: nn.Module) -> Tensor:
    with torch.no_grad():
        return (model(IMAGES) - other(IMAGES)).square().sum()


def test_layers_behind_make_up_for_those_before() -> None:
    model = _model()
    removal = _removal(model, ("9", "3", "6", "0"))
    errors = [_error(model, _repaired(model, removal, name)) for name in ("compensate", "sequential")]
    assert errors[1] < 0.9 * errors[0]
    found = _repaired(model, removal, "sequential")
    assert not any(found.get_submodule(name).weight[~mask].any() for name, mask in removal.kept.items())
    assert "forward" not in found[0].__dict__


@pytest.mark.parametrize("name", ["3", "13"])
def test_one_layer_alone_is_fitted_as_on_dense_inputs(name: str) -> None:
    model = _model()
    removal = _removal(model, (name,))
    one, other = (_repaired(model, removal, repair) for repair in ("compensate", "sequential"))
    for key, value in one.state_dict().items():
        torch.testing.assert_close(other.state_dict()[key], value, rtol=1e-4, atol=1e-5)


def test_a_layer_that_runs_twice_is_named_and_the_model_runs_on() -> None:
    shared = nn.Conv2d(3, 3, 3, padding=1)
    model = nn.Sequential(shared, nn.ReLU(), shared).eval()
    removal = Removal({"0": torch.rand(shared.weight.shape) < 0.5}, {})
    with pytest.raises(CrepeError, match="runs 2 times in one forward: use --refine compensate"):
        REPAIRS.get("sequential").before(model, removal, BATCHES)
    assert model(IMAGES).shape == IMAGES.shape
