"""Shares by what each layer costs the model's outputs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import crepe
from crepe.errors import UsageError
from crepe.vision.methods import Layer
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


@pytest.mark.parametrize("method", ["l2", "bcbp-obs"])
def test_a_layer_that_decides_the_outputs_is_spared(method: str, tmp_path: Path) -> None:
    net, data = net_folder(tmp_path / "net"), parquet(tmp_path / "a.parquet", 30)
    fields = {"method": method, "sparsity": 0.25, "calibration": data, "format": "dense"}
    even = crepe.prune(net, tmp_path / "even", **fields)
    found = crepe.prune(net, tmp_path / "found", allocation="measured", **fields)
    assert {n: t.zeros for n, t in found.tensors.items()} != {n: t.zeros for n, t in even.tensors.items()}
    assert found.sparsity == pytest.approx(even.sparsity, abs=0.12)
