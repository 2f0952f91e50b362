"""The exported file computes the same for any batch size."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from crepe.vision.nets.cifar_resnet import CifarResNet
from image_data import STEPS
from image_families import lively


def test_the_file_agrees_with_the_model_for_another_batch_size(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    from crepe.vision.onnx import export, session

    torch.manual_seed(0)
    model, path = lively(CifarResNet(8, 5, 4)), tmp_path / "model.onnx"
    assert "agrees with the model" in export(model, STEPS, path)
    pixels = torch.randn(5, 3, 32, 32)
    (found,) = session(path).run(["logits"], {"pixel_values": pixels.numpy()})
    with torch.no_grad():
        assert torch.allclose(torch.from_numpy(found), model(pixels), atol=1e-4)
