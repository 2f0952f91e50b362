"""The kernels of the pruning step compiled for a Hopper GPU, which needs none, and held to a budget of instructions.

At 4.3 TB/s an H200 has time for about 7.3 instructions for every byte that is read or written: 22 for a weight that
becomes a byte of a mask or is packed as 2:4. What needs more is bound by instructions, and its test says so.
"""

from __future__ import annotations

from typing import Any

import pytest

from crepe.kernels.triton.configs import HOPPER, Config, find
from sass import Compiled, compile_kernel, counted, starting

pytest.importorskip("triton")

from crepe.kernels.reference.sp24 import INPUTS
from crepe.kernels.triton import bitmap, box_mean, n_of_m, overall_kernels, prune_pack, row_threshold, sums

pytestmark = counted
LANES = 32


# FACTORS -> the factors that are there
FACTORS = {0: (), 1: ("norm",), 2: ("norm", "row", "column")}


def _compiled(kernel: Any, factors: int, tensors: dict[str, str], warps: int, **constants: int) -> Compiled:
    types = {"values": "*bf16", **dict.fromkeys(FACTORS[factors], "*fp32"), **tensors}
    absent = dict.fromkeys(set(FACTORS[2]) - set(FACTORS[factors]))
    found = compile_kernel(kernel, types, {**constants, **absent, "FACTORS": factors}, Config({}, warps))
    assert starting(found.opcodes(), "LDL", "STL") == 0
    return found


def _of_weights(found: Compiled) -> int:
    """Loads of less than 16 bytes, single numbers left aside."""
    opcodes = found.opcodes()
    return starting(opcodes, "LDG") - starting(opcodes, "LDG.E.128", "LDG.E.EL.128")


@pytest.mark.parametrize("inputs", [4096, 11008])
@pytest.mark.parametrize(("factors", "budget"), [(1, 15.0), (2, 19.0)])
def test_prune_pack(inputs: int, factors: int, budget: float) -> None:
    tensors = {"packed": "*bf16", "meta": "*i32", "outputs": "i32"}
    config = find("prune_pack", HOPPER, 0, 4096)
    found = _compiled(prune_pack.prune_pack_kernel, factors, tensors, config.warps, K=inputs, **config.tiles)
    assert found.conversions() == 0 and found.shared == 0
    weights = config.tiles["WORDS"] * INPUTS / (LANES * config.warps)
    assert sum(found.loop().values()) / weights <= budget
    assert _of_weights(found) == (factors == 2)


@pytest.mark.parametrize(
    ("n", "m", "factors", "budget"),
    [(2, 4, 1, 14.0), (2, 4, 2, 19.0), (1, 4, 1, 20.0), (4, 8, 1, 30.0)],
)
def test_n_of_m(n: int, m: int, factors: int, budget: float) -> None:
    sizes = {"ROWS": n_of_m.ROWS, "TILE": 1024, "K": 4096, "N": n, "M": m}
    tensors = {"kept": "*u8", "outputs": "i32"}
    found = _compiled(n_of_m.n_of_m_kernel, factors, tensors, n_of_m.WARPS, **sizes)
    assert found.conversions() == 0 and found.shared == 0
    weights = n_of_m.ROWS * 1024 / (LANES * n_of_m.WARPS)
    assert sum(found.opcodes().values()) / weights <= budget
    assert _of_weights(found) == (n_of_m.ROWS if factors == 2 else 0)


@pytest.mark.parametrize(("inputs", "tile"), [(4096, 4096), (11008, 16384), (28672, 32768)])
def test_row_threshold(inputs: int, tile: int) -> None:
    """Every one of 32 steps looks at each key, so that instructions bind this kernel and not the memory."""
    tensors, warps = {"kept": "*u8", "keep": "i32"}, tile // (LANES * row_threshold.KEYS)
    found = _compiled(row_threshold.row_threshold_kernel, 1, tensors, warps, K=inputs, TILE=tile)
    assert found.conversions() == 0 and _of_weights(found) == 0
    assert 32 * sum(found.loop().values()) / row_threshold.KEYS <= 132.0


@pytest.mark.parametrize(
    ("kernel", "tensors", "budget"),
    [
        ("count", {"bounds": "*i32", "counts": "*i32", "outputs": "i32"}, 23.0),
        ("ties", {"state": "*i64", "counts": "*i32", "outputs": "i32", "keep": "i32"}, 16.0),
        ("mask", {"state": "*i64", "starts": "*i64", "kept": "*u8", "outputs": "i32", "keep": "i32"}, 30.0),
    ],
)
def test_overall(kernel: str, tensors: dict[str, str], budget: float) -> None:
    sizes = {"ROWS": 4, "TILE": 1024, "K": 4096}
    found = _compiled(getattr(overall_kernels, f"{kernel}_kernel"), 1, tensors, 4, **sizes)
    assert found.conversions() == 0
    assert sum(found.opcodes().values()) / 32 <= budget
    assert found.opcodes()["LDG.E.128"] + found.opcodes()["LDG.E.EL.128"] == 6


def test_the_search_behind_a_missed_bracket_does_not_spill() -> None:
    _compiled(overall_kernels.search_kernel, 1, {"state": "*i64", "keep": "i32"}, 4, OUTPUTS=4096, K=4096, TILE=1024)


def test_gathering() -> None:
    """Its stores are scattered, so that Triton deals the keys out anew: the dearest of the passes."""
    tensors = {"bounds": "*i32", "starts": "*i64", "gathered": "*i32", "outputs": "i32", "capacity": "i32"}
    found = _compiled(overall_kernels.gather_kernel, 1, tensors, 4, ROWS=4, TILE=1024, K=4096)
    assert sum(found.opcodes().values()) / 32 <= 60.0


def test_sums_and_windows() -> None:
    types = {"weight": "*bf16", "row_parts": "*fp64", "column_parts": "*fp64", "outputs": "i32"}
    found = compile_kernel(sums.sums_kernel, types, {"K": 4096, "ROWS": 64, "TILE": 4096}, Config({}, 4))
    assert starting(found.opcodes(), "LDL", "STL") == 0 and found.conversions() == 0
    assert found.loop()["LDG.E.128"] == 4 and sum(found.loop().values()) / 32 <= 10.0
    for reach in (1, 3):
        types = {"weight": "*bf16", "mean": "*fp32", "outputs": "i32"}
        sizes = {"K": 4096, "REACH": reach, "ROWS": box_mean.ROWS, "TILE": 1024}
        found = compile_kernel(box_mean.box_mean_kernel, types, sizes, Config({}, box_mean.WARPS))
        assert starting(found.opcodes(), "LDL", "STL") == 0 and found.conversions() == 0
        assert sum(found.loop().values()) / 8 <= 10.0 * (2 * reach + 1) ** 2


def test_bitmaps_do_not_spill() -> None:
    types = {"weight": "*bf16", "values": "*bf16", "kept": "*u8", "bits": "*u8", "starts": "*i64", "counts": "*i32"}
    types |= dict.fromkeys(("total", "count", "length"), "i32")
    for kernel in (bitmap.bits_kernel, bitmap.pack_kernel, bitmap.count_kernel, bitmap.unpack_kernel):
        own = {name: types[name] for name in kernel.arg_names if name in types}
        found = compile_kernel(kernel, own, {"TILE": bitmap.TILE}, Config({}, bitmap.WARPS))
        assert starting(found.opcodes(), "LDL", "STL") == 0
