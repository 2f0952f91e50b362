"""The selection kernels on the CPU against their references, mask by mask and bit by bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from crepe.errors import CrepeError
from crepe.kernels.dispatch import Operation
from crepe.kernels.operations.prune_pack import OPERATION as PRUNE_PACK
from crepe.kernels.operations.select_by_row import OPERATION as BY_ROW
from crepe.kernels.operations.select_n_of_m import OPERATION as N_OF_M
from crepe.kernels.operations.select_overall import OPERATION as OVERALL
from crepe.kernels.reference import sp24
from crepe.kernels.triton import global_threshold, n_of_m, prune_pack
from pruning_cases import FORMS, factors, hard_weight

DTYPES = [torch.bfloat16, torch.float16, torch.float32]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("n", "m"), [(2, 4), (3, 8)])
def test_n_of_m(n: int, m: int, form: str, dtype: torch.dtype) -> None:
    _check(N_OF_M, hard_weight(4, 40, dtype), (n, m), form)


@pytest.mark.parametrize(("n", "m"), [(1, 4), (3, 4), (1, 8), (4, 8), (7, 8)])
def test_every_kind_of_n_of_m(n: int, m: int) -> None:
    _check(N_OF_M, hard_weight(3, 16, torch.bfloat16), (n, m), "norm")


def test_several_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Inputs that fill no tile, more rows than one program takes, and a single row."""
    monkeypatch.setattr(n_of_m, "tile_of", lambda inputs, most: 32)
    monkeypatch.setattr(prune_pack, "tile_of", lambda inputs, most, least: 4)
    _check(N_OF_M, hard_weight(1, 40, torch.bfloat16), (2, 4), "all")
    _check(PRUNE_PACK, hard_weight(5, 160, torch.bfloat16), (), "all")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("form", FORMS)
def test_prune_pack(form: str, dtype: torch.dtype) -> None:
    weight = hard_weight(4, 64, dtype)
    values, meta = _check(PRUNE_PACK, weight, (), form)
    sp24.check(values, meta, (4, 64))
    assert not torch.signbit(values[values == 0]).any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("form", FORMS)
def test_by_row(form: str, dtype: torch.dtype) -> None:
    for keep in (0, 1, 20, 36, 37):
        _check(BY_ROW, hard_weight(4, 37, dtype), (keep,), form)


def test_a_row_longer_than_a_program_is_refused() -> None:
    with pytest.raises(CrepeError, match="its rows have 32776 inputs and a program holds 32768"):
        BY_ROW.run(torch.zeros(1, 32776), 5, None, None, None, backend="triton")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("form", FORMS)
def test_overall(form: str, dtype: torch.dtype) -> None:
    weight = hard_weight(5, 37, dtype)
    for keep in (0, 90, 184, 185):
        _check(OVERALL, weight, (keep,), form)


@pytest.mark.parametrize("sample", [24, 1 << 18])
def test_overall_without_ties(sample: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(global_threshold, "SAMPLE", sample)
    weight = torch.randn(6, 48, generator=torch.Generator().manual_seed(0)).sub_(0.5)
    for keep in (2, 144):
        _check(OVERALL, weight, (keep,), "values")


@pytest.mark.parametrize("keep", [1, 60])
def test_a_bracket_that_misses_costs_only_time(keep: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The two sampled weights, the first ones, lie far below the threshold."""
    monkeypatch.setattr(global_threshold, "SAMPLE", 2)
    monkeypatch.setattr(global_threshold, "bracket", lambda count, share: (0, 1))
    decide, states = global_threshold._decide, []

    def recorded(*arguments: Any) -> torch.Tensor:
        states.append(decide(*arguments))
        return states[-1]

    monkeypatch.setattr(global_threshold, "_decide", recorded)
    weight = torch.randn(3, 40, generator=torch.Generator().manual_seed(1))
    weight[0, :2] = torch.tensor([0.01, 0.02])
    _check(OVERALL, weight, (keep,), "norm")
    assert [int(state[0]) for state in states] == [0]


@pytest.mark.parametrize(
    ("sums", "keep", "state"),
    [
        ((2, 4, 7, 9), 2, 0),  # above the bracket
        ((2, 4, 7, 9), 3, (1, 50, 2, 2)),  # its upper bound
        ((2, 4, 7, 9), 5, (1, 40, 4, 1)),  # inside
        ((2, 4, 7, 9), 7, (1, 30, 5, 2)),
        ((2, 4, 7, 9), 8, (1, 10, 7, 2)),  # its lower bound
        ((2, 4, 7, 9), 10, 0),  # below
        ((2, 4, 8, 9), 5, 0),  # more inside than was gathered
        ((2, 4, 8, 9), 9, (1, 10, 8, 1)),
    ],
)
def test_what_the_counts_decide(sums: tuple[int, ...], keep: int, state: tuple[int, ...] | int) -> None:
    """Bounds are 10 and 50; 40, 30 and 30 were gathered between them."""
    found = global_threshold._decide(torch.tensor([10, 50]), torch.tensor(sums), torch.tensor([40, 30, 30]), keep)
    assert int(found[0]) == 0 if state == 0 else tuple(found.tolist()) == state


class _NoFetch(TorchDispatchMode):
    """Refuses every operation that hands a value from the device to Python."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert function is not torch.ops.aten._local_scalar_dense.default, "a value is fetched from the device"
        return function(*args, **(kwargs or {}))


def test_nothing_waits_for_the_device() -> None:
    """So that a selection can be recorded as a CUDA graph; without a GPU only the operations show it."""
    bounds, sums, between = torch.tensor([10, 50]), torch.tensor([2, 4, 7, 9]), torch.tensor([40, 30, 30])
    with _NoFetch():
        global_threshold._decide(bounds, sums, between, 5)
    with pytest.raises(AssertionError, match="fetched"), _NoFetch():
        sums.sum().item()


def test_refusals_name_the_reason() -> None:
    weight = hard_weight(4, 96, torch.bfloat16)
    norm = torch.ones(96)
    for reason, arguments in {
        "the weight is not contiguous": (weight.T, 2, 4, None, None, None),
        "the weight is torch.float64": (weight.double(), 2, 4, None, None, None),
        "N of 4 or of 8, not 2 of 6": (weight, 2, 6, None, None, None),
        r"norm is \(95,\) of torch.float32": (weight, 2, 4, norm[1:], None, None),
        "no factor, norm alone, or norm, row and column": (weight, 2, 4, norm, None, norm),
    }.items():
        with pytest.raises(CrepeError, match=reason):
            N_OF_M.run(*arguments, backend="triton")


def _check(operation: Operation, values: torch.Tensor, numbers: tuple[int, ...], form: str) -> Any:
    """The kernel's result, after it was found equal to the reference's."""
    arguments = (values, *numbers, *factors(form, *values.shape))
    found, expected = (operation.run(*arguments, backend=name) for name in ("triton", "torch"))
    pairs = zip(found, expected, strict=True) if isinstance(found, tuple) else [(found, expected)]
    assert all(torch.equal(one, other) and one.dtype == other.dtype for one, other in pairs)
    return found
