"""Times are taken in turns, and the dense network is held in its better memory format."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from crepe.eval import latency
from crepe.vision.nets.cifar_resnet import CifarResNet
from image_data import STEPS

EXAMPLE = torch.randn(1, 3, 32, 32)


def test_calls_alternate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "_ROUNDS", 2)
    order: list[str] = []
    found = latency.milliseconds({name: lambda name=name: order.append(name) for name in ("a", "b")})
    assert order == ["a", "b"] * (latency._WARM + 2)
    assert found.keys() == {"a", "b"} and min(found.values()) >= 0


def test_both_networks_beside_each_other(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    from crepe.vision.onnx import export

    monkeypatch.setattr(latency, "_ROUNDS", 1)
    monkeypatch.setattr(latency, "BATCHES", (2,))
    small, large = CifarResNet(8, 5, 4).eval(), CifarResNet(8, 5, 8).eval()
    export(small, STEPS, tmp_path / "model.onnx")
    torch_line, onnx_line = latency.compare(small, large, EXAMPLE, tmp_path / "model.onnx")
    assert torch_line["what"] == "PyTorch" and onnx_line["what"] == "onnxruntime"
    assert torch_line["dense_format"] in ("contiguous", "channels-last") and onnx_line["batch"] == 2
    assert all(line[key] > 0 for line in (torch_line, onnx_line) for key in ("dense", "pruned"))
    (alone,) = latency.compare(small, None, EXAMPLE)
    assert alone["dense"] is None and alone["pruned"] > 0
