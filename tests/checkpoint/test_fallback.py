"""Layers that no kernel covers are named, in one line, where there is a GPU; fake tensors stand for those of one."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily

import crepe
from crepe.checkpoint.fallback import Layer, describe, fallbacks, packed_layers, warn_of_fallbacks
from crepe.checkpoint.layouts import Blocks, Layout, TwoOfFour
from crepe.checkpoint.modules import PackedLinear
from crepe.kernels.dispatch import Backend, Operation, always
from families import tiny_model

pytest.importorskip("triton", reason="triton is not installed")


@pytest.fixture(autouse=True)
def a_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    with FakeTensorMode():
        yield


def _layer(name: str, layout: Layout, device: str = "cuda", dtype: torch.dtype = torch.bfloat16) -> Layer:
    parts = layout.parts().items()
    return Layer(
        name, layout, {key: torch.empty(shape, dtype=own or dtype, device=device) for key, (shape, own) in parts}
    )


def test_what_the_kernels_cover_is_not_listed() -> None:
    blocks = Blocks((256, 256), pattern="colblock:64x8", kept=16)
    assert fallbacks([_layer("a", TwoOfFour((256, 512))), _layer("b", blocks)]) == []


def test_what_they_do_not_cover_is_listed_with_the_reason_of_the_operation() -> None:
    odd = Blocks((256, 256), pattern="colblock:8x8", kept=16)
    layers = [_layer("full", TwoOfFour((64, 128), ordered=True), dtype=torch.float32), _layer("small", odd)]
    full, small = fallbacks(layers)
    assert (full.name, full.shape) == ("full", (64, 128)) and "float32" in full.reason
    assert (small.name, small.shape) == ("small", (256, 256)) and "8 rows" in small.reason


def test_the_report_agrees_with_the_dispatcher_for_every_width() -> None:
    """Whatever widths the kernels take: a layer is listed exactly where torch would run."""
    from crepe.kernels.operations.sp24_linear import OPERATION

    for inputs in range(32, 513, 32):
        layer = _layer("some", TwoOfFour((64, inputs)))
        x = [layer.tensors[""].new_empty(tokens, inputs) for tokens in (1, 16, 2048)]
        chosen = {OPERATION.choose(one, layer.tensors[""], layer.tensors["_meta"], None).name for one in x}
        assert bool(fallbacks([layer])) == ("torch" in chosen), inputs


def test_on_a_cpu_nothing_is_said(caplog: pytest.LogCaptureFixture) -> None:
    assert fallbacks([_layer("some", TwoOfFour((64, 64)), "cpu")]) == []
    assert warn_of_fallbacks(_packed_model("cpu")) is None and not caplog.records


def _packed_model(device: str) -> nn.Module:
    """Two layers in float32, which no kernel takes."""
    layers = [nn.Linear(32, 64, bias=False, device="meta"), nn.Linear(64, 32, bias=False, device="meta")]
    for layer in layers:
        layer.weight = nn.Parameter(torch.empty(layer.weight.shape, device=device))
    return nn.Sequential(*(PackedLinear(TwoOfFour(tuple(layer.weight.shape)), layer) for layer in layers))


def test_one_line_names_the_number_and_the_first(caplog: pytest.LogCaptureFixture) -> None:
    model = _packed_model("cuda")
    with caplog.at_level(logging.WARNING, "crepe"):
        line = warn_of_fallbacks(model)
    (record,) = caplog.records
    assert line is not None and record.getMessage() == line == describe(fallbacks(packed_layers(model)), 2)
    assert line.startswith("2 of 2 packed layers") and "such as 0 (64 x 32): " in line and "float32" in line


def test_the_most_general_kernel_says_why() -> None:
    few = Backend("few", lambda x: x, lambda x: "too many" if x > 3 else "wrong shape")
    any_number = Backend("any number", lambda x: x, lambda x: "wrong shape")
    operation = Operation("some", (few, any_number, Backend("torch", lambda x: x, always)))
    assert operation.uncovered(9) == "wrong shape"
    covered = Operation("some", (Backend("kernel", lambda x: x, always), Backend("torch", lambda x: x, always)))
    assert covered.uncovered(9) is None


def test_a_model_is_asked_when_it_has_been_loaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, a_gpu: None) -> None:
    asked: list[bool] = []
    monkeypatch.setattr("crepe.checkpoint.quantizer.warn_of_fallbacks", lambda model: asked.append(True))
    with unset_fake_temporarily():
        model, rows = tiny_model("llama"), torch.randint(3, 100, (4, 16))
        crepe.prune(model, tmp_path / "out", rows=rows, pattern="2:4", format="packed")
        from transformers import AutoModelForCausalLM

        AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert asked == [True]
