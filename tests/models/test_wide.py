"""Products of 16-bit floats in float32: only where asked, only where they pay, rounded once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from conftest import save_tokenizer
from crepe.calibration.self_text import self_rows
from crepe.models import wide
from crepe.models.wide import wide_bytes, wide_products
from crepe.pipeline.plan import estimate, make_plan
from crepe.recipe import build, choose
from families import tiny_model

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def slow_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wide, "_fast", lambda device: False)


def _layer(dtype: torch.dtype, bias: bool = True) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(96, 40, bias=bias).to(dtype)


def _inputs(tokens: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(2, tokens // 2, 96, generator=torch.Generator().manual_seed(1)).to(dtype)


def test_a_model_that_writes_text_is_widened(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[int] = []
    real = wide._linear
    monkeypatch.setattr(wide, "_linear", lambda *args: seen.append(1) or real(*args))
    rows = self_rows(tiny_model("llama").to(torch.bfloat16), save_tokenizer(tmp_path), 40, 8, seed=0)
    assert rows.shape == (40, 8) and seen


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bias", [True, False])
def test_a_product_is_the_exact_one_rounded_once(
    dtype: torch.dtype, bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer, inputs = _layer(dtype, bias), _inputs(64, dtype)
    seen: list[int] = []
    real = wide._linear
    monkeypatch.setattr(wide, "_linear", lambda *args: seen.append(1) or real(*args))
    with wide_products(CPU):
        found = layer(inputs)
    assert seen
    exact = nn.functional.linear(inputs.double(), layer.weight.double(), layer.bias.double() if bias else None)
    assert found.dtype == dtype
    near = (found - exact).abs() <= 0.51 * torch.finfo(dtype).eps * exact.abs().clamp_min(1e-3)
    assert near.double().mean() > 0.995  # but for those that float32 rounds to the other side


@pytest.mark.parametrize(
    ("tokens", "dtype", "widened"), [(64, torch.bfloat16, True), (8, torch.bfloat16, False), (64, torch.float32, False)]
)
def test_only_what_pays_is_widened(
    tokens: int, dtype: torch.dtype, widened: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.dtype] = []
    monkeypatch.setattr(wide, "_linear", lambda dtype, inputs, *rest: seen.append(inputs.dtype) or inputs)
    layer, inputs = _layer(dtype), _inputs(tokens, dtype)
    layer(inputs)
    assert not seen
    with wide_products(CPU):
        layer(inputs)
    assert bool(seen) == widened


def test_where_the_cpu_is_fast_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, inputs = _layer(torch.bfloat16), _inputs(64, torch.bfloat16)
    monkeypatch.setattr(wide, "_linear", lambda *args: pytest.fail("it was widened"))
    monkeypatch.setattr(wide, "_fast", lambda device: True)
    with wide_products(CPU):
        assert torch.equal(layer(inputs), layer(inputs))


def test_room_is_that_of_the_largest_weight() -> None:
    model = tiny_model("llama")
    assert wide_bytes(model, CPU) == 0
    assert wide_bytes(model.to(torch.bfloat16), CPU) == 4 * max(parameter.numel() for parameter in model.parameters())


def test_dry_runs_count_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where writing needs more room than pruning."""
    monkeypatch.setattr("crepe.pipeline.plan.cache_bytes", lambda model, samples, seqlen: 10**12)
    model, choices = tiny_model("llama").to(torch.bfloat16), choose(build({"model": "x", "device": "cpu"}))
    plan, room = make_plan(model, choices), wide_bytes(model, CPU)
    slow = estimate(model, plan, choices, in_memory=True).memory
    monkeypatch.setattr(wide, "_fast", lambda device: True)
    assert slow - estimate(model, plan, choices, in_memory=True).memory == room > 0


def test_gradients_flow() -> None:
    layer, inputs = _layer(torch.bfloat16), _inputs(64, torch.bfloat16)
    with wide_products(CPU):
        layer(inputs).sum().backward()
    assert layer.weight.grad is not None and layer.weight.grad.dtype == torch.bfloat16


def test_other_devices_have_their_own_products(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert wide._fast(torch.device("cuda")) and wide_bytes(tiny_model("llama"), torch.device("cuda")) == 0


@pytest.mark.parametrize("most", [40 * 96, 1000, 96])
@pytest.mark.parametrize("bias", [True, False])
def test_parts_of_a_weight_are_the_whole(most: int, bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    layer, inputs = _layer(torch.bfloat16, bias), _inputs(64, torch.bfloat16)
    with wide_products(CPU), torch.no_grad():
        whole = layer(inputs)
        monkeypatch.setattr(wide, "_MOST", most)
        assert torch.equal(layer(inputs), whole)


def test_what_autocast_makes_is_widened_too(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, inputs = _layer(torch.float32), _inputs(64, torch.float32)
    real, seen = wide._linear, []
    monkeypatch.setattr(wide, "_linear", lambda *args: seen.append(args[0]) or real(*args))
    with torch.autocast("cpu", torch.bfloat16):
        expected = layer(inputs)
        with wide_products(CPU):
            found = layer(inputs)
            found.float().square().sum().backward()
    assert seen == [torch.bfloat16] and found.dtype == expected.dtype == torch.bfloat16
    assert torch.allclose(found.float(), expected.float(), rtol=2**-7, atol=2**-9)
    assert layer.weight.grad is not None and layer.weight.grad.dtype == torch.float32


@pytest.mark.parametrize("what", ["prune", "evaluate", "search"])
def test_what_calibrates_and_evaluates_is_widened(
    what: str, text_file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import crepe

    real, seen = wide._linear, []
    monkeypatch.setattr(wide, "_linear", lambda *args: seen.append(1) or real(*args))
    model, rows = tiny_model("llama").to(torch.bfloat16), torch.arange(96).reshape(2, 48) % 40
    if what == "prune":
        crepe.prune(model, rows=rows)
    elif what == "evaluate":
        from crepe.eval.perplexity import measure

        measure(model, None, rows)
    else:
        crepe.find_coefficients(model, rows=rows, trials=2, held=1)
    assert seen
