"""Training while pruning ends at the share of multiply-accumulates that was asked for, zeroed or cut."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import crepe
from conftest import SHARED
from crepe.vision.concurrent import ConcurrentPruning, PrunedLayer, Schedule
from crepe.vision.concurrent_budget import MacsTarget, cut_dead
from crepe.vision.cost import macs
from crepe.vision.cut import distance
from crepe.vision.nets.cifar_resnet import CifarResNet
from crepe.vision.representatives import representatives
from image_families import lively

WEIGHTS, IMAGES = SHARED / "weights" / "resnet20-cifar10.safetensors", SHARED / "vision"
EXAMPLE = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def _layers(depth: int) -> list[PrunedLayer]:
    names = [f"layer{stage}.{block}" for stage in (1, 2, 3) for block in range((depth - 2) // 6)]
    return [PrunedLayer(f"{name}.conv1", f"{name}.bn1") for name in names]


def _train_and_prune(model: nn.Module, layers: list[PrunedLayer], batches: list, share: float) -> ConcurrentPruning:
    """Three epochs, selections after the first two."""
    pruning = ConcurrentPruning(
        layers,
        Schedule(0.5, until=2, every=1),
        lambda weight, keep: representatives([weight], keep),
        quantile=MacsTarget(model, layers, EXAMPLE, share),
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    for epoch in range(1, 4):
        model.train()
        for pixels, labels in batches:
            nn.functional.cross_entropy(model(pixels), labels).backward()
            optimizer.step()
            optimizer.zero_grad()
        pruning.on_epoch_end(model.eval(), epoch)
    return pruning


def _check(model: nn.Module, pruning: ConcurrentPruning, share: float, step: float) -> nn.Module:
    """The network with gates, with zeros and with fewer filters is one network, at the wanted cost, up to
    what one filter costs at most."""
    with torch.no_grad():
        gated, dense = model(EXAMPLE), macs(model, EXAMPLE)
        alive = pruning.finish(model)
        masked = model(EXAMPLE)
        smaller = copy.deepcopy(model)
        cut_dead(smaller, alive, EXAMPLE)
        assert distance(gated, masked) <= 1e-5 and distance(masked, smaller(EXAMPLE)) <= 1e-5
    assert share - step < macs(smaller, EXAMPLE) / dense <= share
    widths = {name: smaller.get_submodule(name).out_channels for name in alive}
    assert widths == {name: int(mask.sum()) for name, mask in alive.items()}
    return smaller


def test_it_ends_at_the_target() -> None:
    torch.manual_seed(0)
    model = lively(CifarResNet(depth=8, classes=5, width=16))
    batches = [(torch.randn(8, 3, 32, 32), torch.arange(8) % 5)]
    _check(model, _train_and_prune(model, _layers(8), batches, 0.7), 0.7, 0.05)


@pytest.mark.skipif(not WEIGHTS.is_file() or not IMAGES.is_dir(), reason="the shared weights or images are not there")
def test_a_trained_net_on_real_images_ends_at_the_target_and_still_sees() -> None:
    from crepe.eval.images import accuracy
    from crepe.vision.images import batches, chosen, read_images
    from crepe.vision.load import load_image_model

    model, preprocess = load_image_model("resnet20-cifar10", weights=str(WEIGHTS))
    seen = list(batches(chosen(read_images(str(IMAGES / "cifar10-train.parquet")), 256, 0), preprocess, 32))
    smaller = _check(model, _train_and_prune(model, _layers(20), seen, 0.8), 0.8, 0.02)
    images = chosen(read_images(str(IMAGES / "cifar10-test.parquet")), 200, 0)
    assert accuracy(smaller, preprocess, images, torch.device("cpu"))["accuracy"] > 0.4


def test_what_cannot_be_reached_or_cut_is_named() -> None:
    model = lively(CifarResNet(depth=8, classes=5, width=8))
    with pytest.raises(crepe.UsageError, match=r"macs = 0\.1: give a share from 0\.\d+, one filter in each"):
        MacsTarget(model, _layers(8), EXAMPLE, 0.1)
    with pytest.raises(crepe.CrepeError, match=r"filters of 'layer1\.0\.conv2' cannot be removed: additions tie"):
        MacsTarget(model, [PrunedLayer("layer1.0.conv2", "layer1.0.bn2")], EXAMPLE, 0.7)
