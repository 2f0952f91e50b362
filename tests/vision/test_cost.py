"""Multiply-accumulates against counting by hand."""

from __future__ import annotations

import torch

from crepe.vision.cost import macs, macs_by_layer, parameters
from crepe.vision.nets.cifar_resnet import CifarResNet
from image_families import Flattened, plain


def test_counts_by_hand() -> None:
    model, example = plain(Flattened), torch.randn(2, 3, 32, 32)
    layers = {"first": 32 * 32 * 8 * 27, "second": 32 * 32 * 6 * 72, "hidden": 96 * 12, "head": 60}
    assert macs_by_layer(model, example) == layers
    assert macs(model, example) == sum(layers.values())
    assert parameters(model) == 8 * 28 + 6 * 73 + 97 * 12 + 13 * 5


def test_the_published_cost_of_the_net_for_cifar() -> None:
    """He et al. 2016, table 6: 0.27 M parameters; about 41 M multiply-accumulates."""
    model = CifarResNet(20)
    assert parameters(model) == 269_722 and macs(model, torch.randn(1, 3, 32, 32)) == 40_551_040
