"""Shares by what each layer costs the model's outputs."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest
import torch
from safetensors.torch import load_file, save_file

import crepe
from crepe.errors import UsageError
from crepe.vision.curves import mask_curve
from crepe.vision.evidence import Evidence
from crepe.vision.methods import METHODS, Layer, MaskPart
from crepe.vision.recipe import build_image, choose_image
from crepe.vision.widths import RULES
from image_data import net_folder, parquet

LAYERS = [Layer(name, (torch.ones(16, 2, 3, 3),)) for name in "ab"]


def test_the_cheaper_layer_loses_more_and_the_budget_is_met() -> None:
    curves = {"a": [(0.0, 0.0), (0.5, 0.1), (0.75, 0.2)], "b": [(0.0, 0.0), (0.5, 5.0), (0.75, 9.0)]}
    found = RULES.get("measured")(LAYERS, 0.5, curves)
    assert found == {"a": 0.75, "b": pytest.approx(0.25)}


def test_more_than_is_tried_is_refused_by_name() -> None:
    with pytest.raises(UsageError, match=r"sparsity = 0\.9: allocation 'measured' tries every layer up to 0\.75"):
        choose_image(build_image({"model": "x", "allocation": "measured", "sparsity": 0.9, "calibration": "x.parquet"}))
    given = {"model": "x", "method": "deprune-b", "allocation": "measured", "calibration": "x.parquet"}
    with pytest.raises(UsageError, match=r"filter_sparsity = 0\.9: allocation 'measured' tries"):
        choose_image(build_image({**given, "filter_sparsity": 0.9}))


def test_a_share_of_the_macs_decides_the_sparsity(tmp_path: Path) -> None:
    net, data = net_folder(tmp_path / "net"), parquet(tmp_path / "a.parquet", 30)
    found = crepe.prune(net, tmp_path / "cut", method="l2", macs=0.6, allocation="measured", calibration=data)
    assert found.macs[1] / found.macs[0] == pytest.approx(0.6, abs=0.06) and found.macs[1] <= 0.6 * found.macs[0]


def test_a_layer_is_tried_as_far_as_the_method_goes() -> None:
    class Loss:
        def shape(self, name: str) -> torch.Size:
            return torch.Size((32, 1, 1, 3))

        def loss(self, groups: object, units: object, masks: dict[str, torch.Tensor]) -> float:
            return float(sum((~mask).sum() for mask in masks.values()))

    layer = Layer("a", (torch.rand(32, 1, 1, 3, generator=torch.Generator().manual_seed(0)),), "depthwise")
    part = METHODS.get("deprune-b").parts[0]
    assert isinstance(part, MaskPart)
    assert mask_curve(part, layer, cast(Evidence, Loss())) == [(0.0, 0.0), (0.25, 24.0), (0.5, 48.0)]


@pytest.mark.parametrize("method", ["l2", "bcbp-obs"])
def test_a_layer_that_decides_the_outputs_is_spared(method: str, tmp_path: Path) -> None:
    """The last block, whose outputs are made ten times as loud, loses less than it does where all lose alike."""
    net, data = net_folder(tmp_path / "net"), parquet(tmp_path / "a.parquet", 30)
    state = load_file(f"{net}/model.safetensors")
    state["layer3.0.bn2.weight"] *= 10
    save_file(state, f"{net}/model.safetensors")
    fields = {"method": method, "sparsity": 0.25, "calibration": data, "format": "dense"}
    even = crepe.prune(net, tmp_path / "even", **fields)
    found = crepe.prune(net, tmp_path / "found", allocation="measured", **fields)
    gone = [sum(t.zeros for n, t in run.tensors.items() if n.startswith("layer3")) for run in (found, even)]
    assert 0 < gone[0] < gone[1]
    assert found.sparsity == pytest.approx(even.sparsity, abs=0.12)
