"""Compensation before a cut: closer to the dense network, sliced equal to zeroed, and depth-wise taps."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

import crepe
from crepe.vision.load import logits_of
from crepe.vision.removal import Removal
from crepe.vision.repairs import REPAIRS
from crepe.vision.taps import select_taps
from image_data import net_folder, parquet

EXAMPLE = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("method", ["l2", "bcbp"])
def test_sliced_and_zeroed_folders_still_compute_the_same(method: str, tmp_path: Path) -> None:
    net, data = net_folder(tmp_path / "net"), parquet(tmp_path / "a.parquet", 30)
    found = []
    for kind in ("dense", "sliced"):
        crepe.prune(
            net, tmp_path / kind, method=method, sparsity=0.25, format=kind, refine="compensate", calibration=data
        )
        model, _ = crepe.load(str(tmp_path / kind))
        with torch.no_grad():
            found.append(logits_of(model(EXAMPLE)))
    assert float((found[0] - found[1]).abs().max()) <= 1e-5 * float(found[0].abs().max().clamp(min=1))


def test_taps_of_a_depthwise_layer_are_fitted_channel_by_channel() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False), nn.BatchNorm2d(8)).eval()
    images = torch.nn.functional.avg_pool2d(torch.randn(8, 8, 20, 20), 3, 1)
    kept = select_taps(model[0].weight, 0.5, 8)
    masked, fitted = copy.deepcopy(model), copy.deepcopy(model)
    with torch.no_grad():
        masked[0].weight *= kept
        REPAIRS.get("compensate").before(fitted, Removal({"0": kept}, {"0": "1"}), [(images, torch.zeros(0))])
        errors = [(other(images) - model(images)).square().sum() for other in (masked, fitted)]
    assert errors[1] < 0.8 * errors[0] and not fitted[0].weight[~kept].any()
