"""Every kernel compiled for a Hopper GPU, which needs none, and its hot loop held to a budget of instructions.

At 4.3 TB/s an H200 has time for 31 to 35 instructions on each group of four weights, and logic takes two slots.
"""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sass import Compiled, compile_kernel, counted, groups_of_products, starting

pytest.importorskip("triton")

from crepe.kernels.triton import (
    colblock_matmul,
    colblock_matvec,
    configs,
    dense_matvec,
    sp24_matmul,
    sp24_matvec,
    sp24_mma,
    sp24_unpack,
    transpose,
)
from crepe.kernels.triton.configs import HOPPER, Config, Device, Row, device_of

pytestmark = counted
LANES = 32
BF16 = torch.bfloat16


def _stays_within(compiled: Compiled, config: Config) -> None:
    """Its registers, and the shared memory that the table names. Where the table limits registers, some spill."""
    opcodes = compiled.opcodes()
    assert starting(opcodes, "LDL", "STL") <= (0.03 * sum(opcodes.values()) if config.registers else 0)
    assert compiled.shared <= config.shared


def _sp24_matvec(
    shape: tuple[int, int, int], dtype: torch.dtype, budget: float
) -> tuple[Compiled, dict[str, Any], float]:
    """The kernel within its budget of instructions for a group, its constants, and the groups of a lane in one step."""
    constants, config, _ = sp24_matvec.plan(shape, dtype)
    types = {"out": "*bf16", "x": "*i64", "values": "*i32", "meta": "*i32", "bias": "*bf16"}
    constants = {**constants, "HAS_BIAS": False, "INTERPRETED": False}
    compiled = compile_kernel(sp24_matvec.matvec_kernel, types, constants, config)
    _stays_within(compiled, config)
    assert compiled.conversions() == 0
    groups = constants["ROWS"] * constants["WORDS"] * 8 / LANES
    assert sum(compiled.loop().values()) / groups <= budget, sum(compiled.loop().values()) / groups
    return compiled, constants, groups


def _sp24_matmul(shape: tuple[int, int, int], budget: float) -> tuple[Compiled, dict[str, Any]]:
    """The kernel within its budget of instructions for a group, and its constants."""
    constants, config, _ = sp24_matmul.plan(shape, BF16)
    types = {"out": "*bf16", "x": "*bf16", "values": "*i32", "meta": "*i32", "bias": "*bf16", "tokens": "i32"}
    constants = {**constants, "HAS_BIAS": False, "INTERPRETED": False}
    compiled = compile_kernel(sp24_matmul.matmul_kernel, types, constants, config)
    _stays_within(compiled, config)
    assert compiled.conversions() == 0
    groups = constants["BN"] * constants["WORDS"] * 8 / LANES / config.warps
    assert sum(compiled.loop().values()) / groups <= budget
    return compiled, constants


@pytest.mark.parametrize(
    ("shape", "dtype", "budget"),
    [
        ((1, 4096, 4096), BF16, 12.0),
        ((1, 4096, 11008), BF16, 13.0),
        ((1, 512, 2048), BF16, 15.0),
        ((3, 4096, 14336), BF16, 25.0),
        ((1, 4096, 14336), torch.float16, 14.0),
    ],
)
def test_sp24_matvec(shape: tuple[int, int, int], dtype: torch.dtype, budget: float) -> None:
    compiled, constants, groups = _sp24_matvec(shape, dtype, budget)
    loop = compiled.loop()
    assert loop["PRMT"] >= groups * shape[0]
    assert starting(loop, "LDG") == starting(loop, "LDG.E.128", "LDG.E.64")
    if constants["WORDS"] == 128:
        assert starting(loop, "LDG") == loop["LDG.E.128"]


@pytest.mark.parametrize(
    ("shape", "budget"),
    [
        ((16, 4096, 4096), 16.0),
        ((40, 28672, 4096), 18.0),
        ((40, 28672, 11008), 18.0),
        ((64, 28672, 4096), 18.0),
    ],
)
def test_sp24_matmul(shape: tuple[int, int, int], budget: float) -> None:
    compiled, constants = _sp24_matmul(shape, budget)
    loop = compiled.loop()
    assert loop["LDGSTS.E.BYPASS.128"] == starting(loop, "LDG.", "LDGSTS")
    assert starting(loop, "HGMMA" if constants["BN"] >= 64 else "HMMA")


@pytest.mark.parametrize(
    ("inputs", "budget", "widest"),
    [(576, 20.0, "64"), (4544, 13.0, "128"), (4128, 14.5, "64"), (160, 66.0, "64")],
)
def test_sp24_matvec_of_ragged_widths(inputs: int, budget: float, widest: str) -> None:
    """The words of a row are 18, 142, 129 and 5: no load is wider than what every row is aligned to. Of a pair of words
    the activations are 16 bytes, of one word 8."""
    compiled, _, _ = _sp24_matvec((1, 4096, inputs), BF16, budget)
    loads = {opcode for opcode in compiled.opcodes() if opcode.startswith("LDG")}
    assert any(f".{widest}" in opcode for opcode in loads)
    assert widest == "128" or not any(".128" in opcode for opcode in loads)


@pytest.mark.parametrize(
    ("shape", "budget"), [((16, 576, 576), 16.0), ((16, 4128, 4128), 18.0), ((64, 9600, 2880), 18.0)]
)
def test_sp24_matmul_of_ragged_widths(shape: tuple[int, int, int], budget: float) -> None:
    compiled, _ = _sp24_matmul(shape, budget)
    # Words that are no multiple of four do not lie at 16 bytes.
    assert starting(compiled.opcodes(), "LDGSTS") > starting(compiled.opcodes(), "LDGSTS.E.BYPASS.128")


def _sp24_mma(
    shape: tuple[int, int, int], dtype: torch.dtype, device: Device = HOPPER, architecture: int = 90
) -> tuple[Compiled, dict[str, Any]]:
    """The kernel, and its constants."""
    constants, config, _ = sp24_mma.plan(shape, dtype, device)
    out = "*bf16" if dtype == BF16 else "*fp16"
    types = {"out": out, "x": "*i32", "values": "*i32", "meta": "*i32", "bias": out, "tokens": "i32"}
    given = constants | {"HAS_BIAS": False, "INTERPRETED": False}
    compiled = compile_kernel(sp24_mma.mma_kernel, types, given, config, architecture)
    _stays_within(compiled, config)
    # Where one step covers all inputs there is no loop, and the sums of the warps behind it are counted too.
    sums = 0 if "scf.for" in compiled.ttgir else constants["ROWS"] * constants["TOKENS"]
    assert compiled.conversions() == sums
    return compiled, constants


@pytest.mark.parametrize(
    ("shape", "dtype", "budget"),
    [
        ((4, 4096, 4096), BF16, 9.0),
        ((4, 22016, 4096), BF16, 9.0),
        ((16, 4096, 4096), BF16, 11.0),
        ((16, 4096, 11008), BF16, 14.0),
        ((16, 11008, 4096), BF16, 11.0),
        ((16, 22016, 4096), BF16, 10.5),
        ((16, 22016, 11008), torch.float16, 11.5),
        ((16, 13824, 5120), BF16, 13.5),
        ((32, 4096, 4096), BF16, 18.0),
        ((32, 22016, 4096), BF16, 17.0),
    ],
)
def test_sp24_mma(shape: tuple[int, int, int], dtype: torch.dtype, budget: float) -> None:
    """Every product on the sparse tensor core, weights read 16 bytes at once and all of a phase, or of two where there
    are two buffers, before the first."""
    compiled, constants = _sp24_mma(shape, dtype)
    opcodes, products = compiled.opcodes(), 16 * constants["ROWS"] * constants["TOKENS"]
    assert starting(opcodes, "HMMA.SP.16832.F32") == starting(opcodes, "HMMA")
    # Triton may have unrolled all steps.
    assert starting(opcodes, "HMMA") % products == 0
    of_a_phase = 2 * constants["ROWS"] * constants["AHEAD"] * constants["WIDE"]
    assert _read_before_the_first_product(compiled) >= constants["BUFFERS"] * of_a_phase
    assert opcodes["LDG.E.EF.128"] == starting(opcodes, "LDG.E.EF")
    groups = groups_of_products(opcodes, constants["TOKENS"])
    assert sum(opcodes.values()) / groups <= budget, sum(opcodes.values()) / groups


def _read_before_the_first_product(compiled: Compiled) -> int:
    names = [text.split()[0] for _, text in compiled.instructions]
    first = next(place for place, name in enumerate(names) if name.startswith("HMMA"))
    return names[:first].count("LDG.E.EF.128")


@pytest.mark.parametrize(("capability", "early"), [(8, 0), (9, 1), (12, 1)])
def test_only_cards_since_hopper_start_early(capability: int, early: int, monkeypatch: pytest.MonkeyPatch) -> None:
    properties = SimpleNamespace(name="a card", major=capability)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda place: properties)
    device = device_of.__wrapped__(torch.device("cuda"))
    for shape in ((16, 4096, 4096), (16, 22016, 4096)):
        assert sp24_mma.plan(shape, BF16, device)[0]["EARLY"] == early


def test_sp24_mma_on_an_older_card() -> None:
    compiled, _ = _sp24_mma((16, 22016, 4096), BF16, Device("an older card", 99 << 10), 80)
    assert starting(compiled.opcodes(), "HMMA.SP") and not starting(compiled.opcodes(), "ACQBULK")


def test_a_card_with_less_shared_memory_gets_smaller_tiles() -> None:
    constants, config, _ = sp24_matmul.plan((64, 28672, 4096), BF16, Device("a small card", 99 << 10))
    assert config.shared <= 99 << 10
    types = {"out": "*bf16", "x": "*bf16", "values": "*i32", "meta": "*i32", "bias": "*bf16", "tokens": "i32"}
    constants = {**constants, "HAS_BIAS": True, "INTERPRETED": False}
    for architecture in (89, 90):
        _stays_within(compile_kernel(sp24_matmul.matmul_kernel, types, constants, config, architecture), config)


def test_sp24_unpack() -> None:
    constants, config, _ = sp24_unpack.plan(4096, 11008)
    types = {"out": "*i64", "values": "*i32", "meta": "*i32"}
    compiled = compile_kernel(sp24_unpack.unpack_kernel, types, constants | {"INTERPRETED": False}, config)
    _stays_within(compiled, config)
    # Of each bit position: twice as many bytes are written as read, so the stores divide them among the lanes anew.
    assert compiled.conversions() == 8
    opcodes, groups = compiled.opcodes(), constants["WORDS"] * 8 / LANES
    # 12.5 bytes are read and written for a group, nearly three times those of a product.
    assert sum(opcodes.values()) / groups <= 26
    assert starting(opcodes, "LDG") == opcodes["LDG.E.128"] and starting(opcodes, "STG") == opcodes["STG.E.128"]


@pytest.mark.parametrize(
    ("shape", "rows", "columns", "exchanging"),
    [
        ((16, 4096, 4096), 32, 8, False),
        ((16, 28672, 4096), 64, 16, False),
        ((64, 4096, 4096), 64, 32, False),
        ((128, 4096, 4096), 64, 8, False),
        ((2048, 4096, 4096), 16, 8, False),
        ((2048, 4096, 4096), 32, 16, False),
        ((2048, 4096, 4096), 128, 16, False),
        ((2048, 4096, 4096), 16, 8, True),
        ((2048, 22016, 4096), 64, 8, True),
        ((2048, 4096, 4096), 128, 32, True),
    ],
)
def test_colblock_matmul(shape: tuple[int, int, int], rows: int, columns: int, exchanging: bool) -> None:
    """As a dense product: copies of 16 bytes to shared memory while the tensor cores work, and little beside."""
    constants, config, _ = colblock_matmul.plan(shape, shape[2] // 2, rows, columns, exchanging)
    types = {"out": "*bf16", "x": "*bf16", "values": "*bf16", "blocks": "*i32", "bias": "*bf16"}
    types |= {"tokens": "i32", "across": "i32"}
    constants = {**constants, "HAS_BIAS": False, "INTERPRETED": False}
    compiled = compile_kernel(colblock_matmul.matmul_kernel, types, constants, config, even="across")
    _stays_within(compiled, config)
    assert compiled.conversions() <= 1
    loop, threads = compiled.loop(), LANES * config.warps
    copied = constants["BK"] * (constants["BN"] + constants["BM"]) * 2 / 16 / threads
    # What is left over reads the numbers of the blocks, some of them by the same instruction.
    assert copied <= loop["LDGSTS.E.BYPASS.128"] <= starting(loop, "LDG.", "LDGSTS") <= copied + 1
    assert starting(loop, "HGMMA" if constants["BN"] >= 64 else "HMMA")
    # Rows of exchanged activations lie a number apart that only the launch knows.
    assert sum(loop.values()) <= 60 + (11 if exchanging else 8) * copied


def test_what_comes_before_a_product_is_written_in_wide_stores() -> None:
    """Activations are exchanged or arranged by kernels of their own, which read what the caches can hold."""
    types = {"out": "*bf16", "x": "*bf16", "tokens": "i32", "across": "i32"}
    constants = {"INPUTS": 4096, "TILE": transpose.TILE}
    compiled = compile_kernel(transpose.transpose_kernel, types, constants, Config({}, 4), even="across")
    _stays_within(compiled, Config({}, 4, shared=16 << 10))
    opcodes = compiled.opcodes()
    assert starting(opcodes, "STG") == opcodes["STG.E.128"] == transpose.TILE**2 * 2 / 16 / LANES / 4
    assert sum(opcodes.values()) <= 200
    types = {"out": "*i32", "x": "*i32", "tokens": "i32"}
    for early in (False, True):
        constants, config, _ = sp24_mma.arrangement(16, 4096, 2, early)
        compiled = compile_kernel(sp24_mma.arrange_kernel, types, constants, config)
        _stays_within(compiled, replace(config, shared=8 << 10))
        opcodes = compiled.opcodes()
        assert starting(opcodes, "STG") == opcodes["STG.E.128"] and sum(opcodes.values()) <= 250


@pytest.mark.parametrize(("tokens", "columns", "budget"), [(1, 8, 15.0), (1, 32, 15.0), (3, 8, 27.0)])
def test_colblock_matvec(tokens: int, columns: int, budget: float) -> None:
    constants, config, _ = colblock_matvec.plan((tokens, 4096, 16384), 8192, 64, columns, BF16)
    types = {"out": "*bf16", "x": "*i32", "values": "*i32", "blocks": "*i32", "bias": "*bf16"}
    compiled = compile_kernel(colblock_matvec.matvec_kernel, types, constants | {"HAS_BIAS": False}, config)
    _stays_within(compiled, config)
    # The numbers of the blocks: read by one layout, used by another.
    assert compiled.conversions() == 1
    loop, pieces = compiled.loop(), constants["PIECES"] / LANES / config.warps
    assert sum(loop.values()) / (2 * constants["ROWS"] * pieces) <= budget
    assert loop["LDG.E.128"] == (constants["ROWS"] + tokens) * pieces


def test_the_dense_kernel_is_no_straw_man() -> None:
    """It reads as ours do, with fewer instructions than the limit of its 8 bytes for four weights."""
    constants = {"OUTPUTS": 4096, "INPUTS": 4096, "TOKENS": 1, "BF16": True}
    constants |= {"ROWS": dense_matvec.ROWS, "PAIRS": dense_matvec.PAIRS}
    types = {"out": "*bf16", "x": "*i32", "weight": "*i32"}
    config = Config({}, 1)
    compiled = compile_kernel(dense_matvec.matvec_kernel, types, constants, config)
    _stays_within(compiled, config)
    loop, fours = compiled.loop(), dense_matvec.ROWS * dense_matvec.PAIRS / 2 / LANES
    assert compiled.conversions() == 0
    assert sum(loop.values()) / fours <= 15
    assert starting(loop, "LDG") == loop["LDG.E.128"]


def test_what_was_planned_cannot_be_changed_and_is_forgotten_with_its_table(monkeypatch: pytest.MonkeyPatch) -> None:
    constants, *_ = sp24_unpack.plan(8, 4096)
    with pytest.raises(TypeError):
        constants["WORDS"] = 1  # type: ignore[index]
    monkeypatch.setitem(configs.TABLES, "sp24_unpack", (Row(Config({"WORDS": 32}, 1)),))
    assert sp24_unpack.plan(8, 4096)[0] is constants
    configs.forget()
    assert sp24_unpack.plan(8, 4096)[0]["WORDS"] == 32
    configs.forget()
