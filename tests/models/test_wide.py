"""Products of 16-bit floats in float32: only where asked, only where they pay, rounded once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from conftest import save_tokenizer
from crepe.calibration.self_text import self_rows
from crepe.eval.perplexity import measure
from crepe.models import wide
from crepe.models.wide import wide_bytes, wide_products
from crepe.pipeline.plan import _matmul_speed, estimate, make_plan
from crepe.recipe import build, choose
from families import tiny_model

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def slow_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wide, "_fast", lambda device: False)


@pytest.fixture
def widened(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """The arguments of every product that is computed in float32: dtype, inputs, weight and bias."""
    real, seen = wide._linear, []
    monkeypatch.setattr(wide, "_linear", lambda *args: seen.append(args) or real(*args))
    return seen


def _layer(dtype: torch.dtype, bias: bool = True) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(96, 40, bias=bias).to(dtype)


def _inputs(tokens: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(2, tokens // 2, 96, generator=torch.Generator().manual_seed(1)).to(dtype)


def test_a_model_that_writes_text_is_widened(widened: list[tuple[Any, ...]], tmp_path: Path) -> None:
    rows = self_rows(tiny_model("llama").to(torch.bfloat16), save_tokenizer(tmp_path), 40, 8, seed=0)
    assert rows.shape == (40, 8) and widened


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bias", [True, False])
def test_a_product_is_the_exact_one_rounded_once(
    dtype: torch.dtype, bias: bool, widened: list[tuple[Any, ...]]
) -> None:
    layer, inputs = _layer(dtype, bias), _inputs(64, dtype)
    with wide_products(CPU):
        found = layer(inputs)
    assert widened
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


def test_room_is_that_of_the_largest_weight_and_of_inputs_and_results() -> None:
    model = tiny_model("llama")
    assert wide_bytes(model, CPU, 100) == 0
    shapes = [parameter.shape for parameter in model.parameters() if parameter.dim() == 2]
    numbers = max(out * inputs for out, inputs in shapes) + 2 * 100 * max(max(shape) for shape in shapes)
    assert wide_bytes(model.to(torch.bfloat16), CPU, 100) == 4 * numbers


def test_dry_runs_count_it(monkeypatch: pytest.MonkeyPatch) -> None:
    model, choices = tiny_model("llama").to(torch.bfloat16), choose(build({"model": "x", "device": "cpu"}))
    plan, recipe = make_plan(model, choices), choices.recipe
    room = wide_bytes(model, CPU, recipe.batch_size * recipe.seqlen)
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
    assert wide._fast(torch.device("cuda")) and wide_bytes(tiny_model("llama"), torch.device("cuda"), 8) == 0


@pytest.mark.parametrize("bias", [True, False])
def test_parts_are_the_whole_and_not_more_is_widened_at_once(bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, weight = (torch.randint(-3, 4, shape).to(torch.bfloat16) for shape in ((2, 50, 96), (40, 96)))
    offset = torch.randint(-3, 4, (40,)).to(torch.bfloat16) if bias else None
    exact = nn.functional.linear(inputs.double(), weight.double(), None if offset is None else offset.double())
    sizes: list[int] = []
    real = nn.functional.linear

    def seen(x: Tensor, part: Tensor, some: Tensor | None) -> Tensor:
        found = real(x, part, some)
        sizes.extend([x.numel(), part.numel(), found.numel()])
        return found

    for most in (96, 1000, 96 * 40, 10**6):
        monkeypatch.setattr(wide, "_MOST", most)
        with wide_products(CPU):
            found = nn.functional.linear(inputs, weight, offset)
        assert torch.equal(found, exact.to(torch.bfloat16))
        with monkeypatch.context() as patched:
            patched.setattr(wide.functional, "linear", seen)
            wide._in_parts(inputs.flatten(0, 1), weight, offset)
        assert max(sizes) <= most
        sizes.clear()


def test_gradients_are_those_of_exact_products() -> None:
    operands = [torch.randint(-2, 3, shape).double().requires_grad_() for shape in ((2, 50, 24), (10, 24), (10,))]
    factor = torch.randint(-1, 2, (2, 50, 10)).double()
    (nn.functional.linear(*operands) * factor).sum().backward()
    short = [operand.detach().to(torch.bfloat16).requires_grad_() for operand in operands]
    with wide_products(CPU):
        (nn.functional.linear(*short) * factor.to(torch.bfloat16)).sum().backward()
    for exact, found in zip(operands, short, strict=True):
        assert exact.grad is not None and found.grad is not None
        assert torch.equal(found.grad, exact.grad.to(torch.bfloat16))


def test_what_is_kept_for_gradients_is_not_wider() -> None:
    layer, inputs = _layer(torch.bfloat16), _inputs(64, torch.bfloat16)
    kept: list[torch.dtype] = []
    with wide_products(CPU), torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.dtype) or t, lambda t: t):
        layer(inputs)
    assert kept == [torch.bfloat16, torch.bfloat16]


def test_what_autocast_makes_is_widened_too(widened: list[tuple[Any, ...]]) -> None:
    layer, inputs = _layer(torch.float32), _inputs(64, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        expected = layer(inputs)
        with wide_products(CPU):
            found = layer(inputs)
            found.float().square().sum().backward()
    assert [dtype for dtype, *_ in widened] == [torch.bfloat16] and found.dtype == expected.dtype == torch.bfloat16
    assert torch.allclose(found.float(), expected.float(), rtol=2**-7, atol=2**-9)
    assert layer.weight.grad is not None and layer.weight.grad.dtype == torch.float32


def test_weights_that_lie_the_other_way() -> None:
    """As transformers' Conv1D has them."""
    inputs, weight, bias = (torch.randint(-3, 4, shape).to(torch.bfloat16) for shape in ((64, 24), (24, 10), (10,)))
    with wide_products(CPU):
        found = torch.addmm(bias, inputs, weight)
    assert torch.equal(found, torch.addmm(bias.double(), inputs.double(), weight.double()).to(torch.bfloat16))


@pytest.mark.parametrize("case", ["bias", "none", "empty", "autocast", "vmap"])
def test_what_it_leaves_to_torch(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Operands of different dtypes, nothing to multiply, whole numbers under autocast, transforms."""
    monkeypatch.setattr(wide, "_linear", lambda *args: pytest.fail("it was widened"))
    inputs, weight = torch.ones(64, 8, dtype=torch.bfloat16), torch.ones(5, 8, dtype=torch.bfloat16)
    with wide_products(CPU):
        if case == "bias":
            with pytest.raises(RuntimeError):
                nn.functional.linear(inputs, weight, torch.ones(5))
        elif case == "autocast":
            with torch.autocast("cpu", torch.bfloat16), pytest.raises(RuntimeError):
                nn.functional.linear(inputs.long(), weight)
        elif case == "vmap":
            together = torch.vmap(nn.functional.linear, (None, 0))(inputs, weight.expand(3, 5, 8))
            assert together.shape == (3, 64, 5)
        else:
            rows = 0 if case == "none" else 40
            assert nn.functional.linear(torch.ones(rows, 0), torch.ones(5, 0)).shape == (rows, 5)


@pytest.mark.parametrize("what", ["prune", "refit", "parent", "evaluate", "tasks", "search", "speed"])
def test_what_runs_models_is_widened(
    what: str, widened: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    import crepe

    model, rows = tiny_model("llama").to(torch.bfloat16), torch.arange(96).reshape(2, 48) % 40
    if what == "prune":
        crepe.prune(model, rows=rows)
    elif what == "refit":
        crepe.prune(model, rows=rows, refine="refit", refit_steps=1, pattern="2:4")
    elif what == "parent":
        model = _opt()
        crepe.prune(model, rows=rows)
    elif what == "evaluate":
        measure(model, None, rows)
    elif what == "tasks":
        _with_a_task(model, monkeypatch)
    elif what == "search":
        crepe.find_coefficients(model, rows=rows, trials=2, held=1)
    else:
        choices = choose(build({"model": "x", "device": "cpu"}))
        _matmul_speed(torch.bfloat16, make_plan(model, choices), choices.recipe)
    assert widened
    assert what != "refit" or any(weight.requires_grad for _, _, weight, _ in widened)
    assert what != "parent" or (32, 16) in [tuple(weight.shape) for _, _, weight, _ in widened]


def _opt() -> nn.Module:
    """A model with a linear layer between its embedding and its blocks."""
    from transformers import OPTConfig, OPTForCausalLM

    config = OPTConfig(
        vocab_size=40, hidden_size=32, word_embed_proj_dim=16, ffn_dim=64, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=64,
    )  # fmt: skip
    return OPTForCausalLM(config).eval().to(torch.bfloat16)


def _with_a_task(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """`run_tasks` with a stand-in for lm-eval that runs the model once."""
    lm_eval = pytest.importorskip("lm_eval")
    import lm_eval.models.huggingface as theirs

    from crepe.eval import tasks

    monkeypatch.setattr(tasks, "check_tasks", lambda names, path: None)
    monkeypatch.setattr(theirs, "HFLM", lambda **given: given["pretrained"])
    monkeypatch.setattr(
        lm_eval, "simple_evaluate", lambda **given: given["model"](torch.ones(1, 40, dtype=torch.int64)) and {}
    )
    tasks.run_tasks(model, None, ["some"], None, 40)
