"""Launching a kernel that was launched before: the same binary with the same arguments, without Triton's search."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from sparse_weights import colblock_weight, sp24_weight, weight_of

pytest.importorskip("triton")

from triton.compiler.compiler import LazyDict

from crepe.kernels.triton import (
    colblock_matmul,
    colblock_matvec,
    configs,
    sp24_matmul,
    sp24_matvec,
    sp24_mma,
    sp24_unpack,
)
from crepe.kernels.triton.configs import Row, device_of
from crepe.masks import ColBlock
from fake_gpu import FakeGPU, fake_gpu

BF16, FP16 = torch.bfloat16, torch.float16
Product = Callable[[int, torch.dtype, Tensor | None], Tensor]


@pytest.fixture
def gpu() -> Iterator[FakeGPU]:
    with fake_gpu() as fake:
        yield fake


def _sp24(kernel: Any) -> Product:
    def product(tokens: int, dtype: torch.dtype, bias: Tensor | None) -> Tensor:
        found: Tensor = kernel(weight_of(tokens, 128, dtype), *sp24_weight(64, 128, dtype), bias, False)
        return found

    return product


def _colblock(kernel: Any, *more: Any) -> Product:
    def product(tokens: int, dtype: torch.dtype, bias: Tensor | None) -> Tensor:
        values, blocks = colblock_weight(64, 128, ColBlock(64, 8), dtype)
        found: Tensor = kernel(weight_of(tokens, 128, dtype), values, blocks, 64, 8, bias, *more)
        return found

    return product


PRODUCTS = [
    pytest.param(2, _sp24(sp24_matvec.matvec), id="sp24_matvec"),
    pytest.param(16, _sp24(sp24_mma.mma), id="sp24_mma"),
    pytest.param(33, _sp24(sp24_matmul.matmul), id="sp24_matmul"),
    pytest.param(2, _colblock(colblock_matvec.matvec), id="colblock_matvec"),
    pytest.param(16, _colblock(colblock_matmul.matmul, False), id="colblock_matmul"),
    pytest.param(512, _colblock(colblock_matmul.matmul, False, True), id="colblock_prefill"),
]


def _like(argument: Any) -> Any:
    if isinstance(argument, Tensor):
        return argument.dtype, argument.shape
    return argument.data if isinstance(argument, LazyDict) else argument


def _asked(fake: FakeGPU, run: Callable[[], object]) -> list[Any]:
    """What one call launches: grid and arguments, tensors by kind and shape."""
    fake.launched.clear()
    run()
    return [(grid, [_like(argument) for argument in arguments]) for grid, arguments in fake.launched]


def _binary(asked: list[Any]) -> int:
    """The function that the last launch of a call runs."""
    found: int = asked[-1][1][1]
    return found


@pytest.mark.parametrize(("tokens", "product"), PRODUCTS)
def test_the_second_launch_asks_for_what_the_first_did(gpu: FakeGPU, tokens: int, product: Product) -> None:
    bias = weight_of(1, 64, BF16)[0]
    first = {given: _asked(gpu, lambda given=given: product(tokens, BF16, given)) for given in (None, bias)}
    assert len({_binary(asked) for asked in first.values()}) == 2
    for given, asked in first.items():
        assert asked == _asked(gpu, lambda given=given: product(tokens, BF16, given))


@pytest.mark.parametrize(("tokens", "product"), PRODUCTS)
def test_another_kind_or_size_is_another_binary(gpu: FakeGPU, tokens: int, product: Product) -> None:
    calls = [lambda: product(tokens, BF16, None), lambda: product(tokens, FP16, None), lambda: product(1, BF16, None)]
    first = [_asked(gpu, call) for call in calls]
    assert [_asked(gpu, call) for call in calls] == first
    assert _binary(first[0]) != _binary(first[1])


def test_unpacking_is_launched_the_same_way(gpu: FakeGPU) -> None:
    values, meta = sp24_weight(64, 4096, BF16)
    first, second = (_asked(gpu, lambda: sp24_unpack.unpack(values, meta, False)) for _ in range(2))
    assert first == second and first[0][0] == (64, 1, 1)


def test_a_limit_of_registers_reaches_the_compiler(gpu: FakeGPU, monkeypatch: pytest.MonkeyPatch) -> None:
    row, found = configs.TABLES["sp24_mma"][0], set()
    for registers in (0, 64):
        monkeypatch.setitem(configs.TABLES, "sp24_mma", (Row(replace(row.config, registers=registers)),))
        configs.forget()
        found.add(_binary(_asked(gpu, lambda: _sp24(sp24_mma.mma)(8, BF16, None))))
    assert len(found) == 2


def test_every_gpu_has_a_binary_of_its_own(gpu: FakeGPU) -> None:
    values, meta = sp24_weight(64, 128, BF16)
    sp24_unpack.unpack(values, meta, False)
    (key,) = sp24_unpack.plan(64, 128, device_of(values.device)).ready
    assert key[0] == values.device


def test_the_second_launch_does_not_ask_triton(gpu: FakeGPU, monkeypatch: pytest.MonkeyPatch) -> None:
    values, meta = sp24_weight(64, 128, BF16)
    sp24_unpack.unpack(values, meta, False)
    monkeypatch.setattr(type(sp24_unpack.unpack_kernel), "run", None)
    sp24_unpack.unpack(values, meta, False)
    assert len(gpu.launched) == 2


def test_tensors_of_a_launch_are_those_of_the_call(gpu: FakeGPU) -> None:
    """Kept is the binary, none of the tensors of the first call."""
    for seed in range(2):
        x, (values, meta) = weight_of(1, 128, BF16, seed), sp24_weight(64, 128, BF16)
        out = sp24_matvec.matvec(x, values, meta, None, False)
        given = [argument for argument in gpu.launched[-1][1] if isinstance(argument, Tensor)]
        pointers = [tensor.data_ptr() for tensor in (out, x, values, meta, out)]
        assert [tensor.data_ptr() for tensor in given] == pointers
