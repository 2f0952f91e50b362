"""The 2:4 operations as torch sees them, and on a GPU where there is one."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, library
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.flop_counter import FlopCounterMode

from crepe.checkpoint.layouts import TwoOfFour
from crepe.checkpoint.modules import PackedLinear
from crepe.errors import CrepeError
from crepe.kernels.operations.sp24_linear import OPERATION, sp24_linear
from crepe.kernels.operations.sp24_unpack import layout_obstacle, sp24_unpack
from crepe.kernels.reference import sp24
from gpu import needs_gpu, replayed
from sparse_weights import SP24_CHOICES, assert_close, exact, poisoned, sp24_weight, strided, weight_of

GPU_SHAPES = [
    (512, 2048),
    (1000, 3584),
    (4096, 4096),
    (2050, 11008),
    (9000, 1536),
    (16500, 1536),
    (576, 576),
    (300, 160),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_torch_may_trust_the_custom_ops(dtype: torch.dtype) -> None:
    values, meta = sp24_weight(3, 64, dtype)
    x, bias = weight_of(2, 64, dtype), weight_of(1, 3, dtype)[0]
    for arguments in [(x, values, meta, None), (x.reshape(1, 2, 64), values, meta, bias)]:
        library.opcheck(torch.ops.crepe.sp24_linear, arguments)
        library.opcheck(torch.ops.crepe.sp24_linear, tuple(map(strided, arguments)))
    library.opcheck(torch.ops.crepe.sp24_unpack, (values, meta))
    library.opcheck(torch.ops.crepe.sp24_unpack, (strided(values), strided(meta)))


def test_without_a_gpu_the_reference_runs_and_names_are_refused() -> None:
    values, meta = sp24_weight(3, 128, torch.bfloat16)
    x = weight_of(8, 128, torch.bfloat16)
    assert torch.equal(sp24_linear(x, values, meta), sp24.linear(x, values, meta, None))
    assert torch.equal(sp24_unpack(values, meta), sp24.unpack(values, meta))
    assert OPERATION.choose(x, values, meta, None).name == "torch"
    with pytest.raises(CrepeError, match=r"'matvec': x has 8 tokens: it takes 1 to 3"):
        OPERATION.run(x, values, meta, None, backend="matvec")
    for name in ("mma", "matmul", "unpack"):
        with pytest.raises(CrepeError, match=f"'{name}': it needs a GPU and the"):
            OPERATION.run(x, values, meta, None, backend=name)


def test_weights_that_32_bits_cannot_count_are_not_for_kernels() -> None:
    values, meta = torch.empty(1 << 17, 1 << 15, device="meta"), torch.empty(1 << 17, 1 << 11, dtype=torch.int32)
    assert "4294967296 values" in str(layout_obstacle(values, meta))
    assert layout_obstacle(values[1:], meta[1:]) is None


def test_no_tokens_make_no_outputs() -> None:
    values, meta = sp24_weight(3, 128, torch.bfloat16)
    assert sp24_linear(torch.zeros(2, 0, 128, dtype=torch.bfloat16), values, meta).shape == (2, 0, 3)


def test_a_compiled_layer_is_one_graph() -> None:
    values, meta = sp24_weight(3, 64, torch.float32)
    layer = torch.compile(lambda x: torch.ops.crepe.sp24_linear(x, values, meta) + 1, backend="eager", fullgraph=True)
    for tokens in (1, 5):
        x = weight_of(tokens, 64, torch.float32)
        assert torch.equal(layer(x), sp24.linear(x, values, meta, None) + 1)


@pytest.mark.parametrize("operation", [sp24_linear, torch.ops.crepe.sp24_linear.default])
def test_torch_does_not_compile_what_is_inside(operation: Any) -> None:
    """Also where it is called by its name in a frame that could not be compiled whole."""
    values, meta = sp24_weight(3, 64, torch.float32)
    seen: list[str] = []

    def backend(graph: Any, inputs: Any) -> Any:
        seen.extend(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
        return graph.forward

    def twice(x: torch.Tensor) -> torch.Tensor:
        for _ in range(2):
            torch._dynamo.graph_break()
            found = operation(x, values, meta)
        return found + 1

    x = weight_of(2, 64, torch.float32)
    assert torch.equal(torch.compile(twice, backend=backend)(x), sp24.linear(x, values, meta, None) + 1)
    assert not any("rshift" in target or "scatter" in target for target in seen)


def test_a_plain_call_does_not_wait_for_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's way to the operation is for gradients, graphs and tensors that only know their shapes."""
    values, meta = sp24_weight(3, 128, torch.float32)
    x, bias = weight_of(2, 128, torch.float32), torch.nn.Parameter(torch.ones(3))
    expected = torch.ops.crepe.sp24_linear(x, values, meta, bias)
    asked: list[Any] = []
    monkeypatch.setattr(sp24_linear, "overload", lambda *args: asked.append(args) or args[0])
    with torch.no_grad():
        assert torch.equal(sp24_linear(x, values, meta, bias), expected) and not asked
    sp24_linear(x, values, meta, bias)  # the bias may be trained here
    with FakeTensorMode() as mode:
        sp24_linear(*map(mode.from_tensor, (x, values, meta)))
    assert len(asked) == 2


def _watched(how: str, run: Callable[[Tensor], Tensor], x: Tensor) -> Any:
    """`run` where something of torch looks on."""
    if how == "torch.jit.trace":
        return torch.jit.trace(run, x, check_trace=False)(x)  # type: ignore[no-untyped-call]
    if how == "make_fx":
        return make_fx(run)(x)(x)
    if how == "vmap":
        return torch.vmap(run)(x[None])[0]
    if how == "a mode":
        with FlopCounterMode(display=False):
            return run(x)
    with FakeTensorMode(allow_non_fake_inputs=True):
        return run(x)


@pytest.mark.parametrize("how", ["torch.jit.trace", "make_fx", "vmap", "a mode", "fake tensors"])
@pytest.mark.filterwarnings("ignore")
def test_who_watches_sees_the_operation(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    values, meta = sp24_weight(3, 64, torch.float32)
    x = weight_of(2, 64, torch.float32)
    monkeypatch.setattr(sp24_linear, "run", lambda *args: pytest.fail("it ran at once"))
    with torch.no_grad():
        assert _watched(how, lambda inputs: sp24_linear(inputs, values, meta), x).shape == (2, 3)


def test_a_packed_layer_can_be_traced_symbolically() -> None:
    layer = PackedLinear(TwoOfFour((3, 64)), torch.nn.Linear(64, 3))
    nodes = torch.fx.symbolic_trace(layer).graph.nodes
    assert torch.ops.crepe.sp24_linear.default in [node.target for node in nodes]


def test_training_through_a_packed_layer_is_refused_in_the_backward_pass() -> None:
    values, meta = sp24_weight(3, 64, torch.float32)
    x = weight_of(2, 64, torch.float32).requires_grad_()
    found = sp24_linear(x, values, meta)
    with pytest.raises(NotImplementedError, match="sp24_linear has no backward"):
        found.sum().backward()


@needs_gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", GPU_SHAPES)
@pytest.mark.parametrize(
    ("backend", "tokens"),
    [
        ("matvec", (1, 2, 3)),
        ("mma", (1, 4, 16, 17, 33, 96, 130)),
        ("matmul", (1, 4, 16, 17, 33, 96, 130)),
        ("unpack", (1, 65, 1024)),
        ("torch", (1, 5)),
    ],
)
def test_gpu_products(
    backend: str, tokens: tuple[int, ...], shape: tuple[int, int], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    # cuBLAS adds partial sums in the output's dtype where it may.
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_bf16_reduced_precision_reduction", False)
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_fp16_reduced_precision_reduction", False)
    slack = 0.0 if backend in ("matvec", "mma", "matmul") else 2.0**-6
    outputs, inputs = shape
    values, meta = (tensor.cuda() for tensor in sp24_weight(outputs, inputs, dtype))
    weight, bias = sp24.unpack(values, meta), weight_of(1, outputs, dtype, 3)[0].cuda()
    for number, some_bias in product(tokens, (None, bias)):
        x = weight_of(number, inputs, dtype, 2).cuda()
        with poisoned():
            found = OPERATION.run(x, values, meta, some_bias, backend=backend)
        assert_close(found, exact(x, weight, some_bias), slack)


@needs_gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gpu_unpack_is_exact(dtype: torch.dtype) -> None:
    for outputs, inputs in [(5, 32), (5, 160), (576, 576), (512, 2048), (1000, 3584), (300, 11008)]:
        values, meta = sp24_weight(outputs, inputs, dtype)
        with poisoned():
            found = sp24_unpack(values.cuda(), meta.cuda())
        assert torch.equal(found.cpu().view(torch.int16), sp24.unpack(values, meta).view(torch.int16))


@needs_gpu
def test_gpu_choices() -> None:
    values, meta = (tensor.cuda() for tensor in sp24_weight(64, 256, torch.bfloat16))
    for tokens, expected in SP24_CHOICES:
        x = torch.zeros(tokens, 256, dtype=torch.bfloat16, device="cuda")
        assert OPERATION.choose(x, values, meta, None).name == expected
    with pytest.raises(CrepeError, match="on cpu and cuda"):
        OPERATION.run(x[:2].cpu(), values, meta, None, backend="matvec")


@needs_gpu
@pytest.mark.parametrize("tokens", [1, 3, 8, 16, 64, 200])
def test_gpu_graphs_and_compiled_layers(tokens: int) -> None:
    values, meta = (tensor.cuda() for tensor in sp24_weight(512, 2048, torch.bfloat16))
    x, other = (weight_of(tokens, 2048, torch.bfloat16, seed).cuda() for seed in (2, 3))
    expected = sp24_linear(other, values, meta)
    assert torch.equal(replayed(lambda inputs: sp24_linear(inputs, values, meta), x, other), expected)
    compiled = torch.compile(lambda inputs: torch.ops.crepe.sp24_linear(inputs, values, meta), fullgraph=True)
    assert torch.equal(compiled(other), expected)
