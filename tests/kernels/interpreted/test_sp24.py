"""The 2:4 kernels on the CPU: ragged shapes, both dtypes, and which backend is chosen."""

from __future__ import annotations

import pytest
import torch

from crepe.errors import CrepeError
from crepe.kernels.operations.sp24_linear import OPERATION
from crepe.kernels.operations.sp24_unpack import OPERATION as UNPACK
from crepe.kernels.reference import sp24
from crepe.kernels.triton import configs, sp24_mma
from crepe.kernels.triton.configs import Config, Row
from sparse_weights import SP24_CHOICES, assert_close, exact, poisoned, sp24_weight, weight_of

DTYPES = [torch.bfloat16, torch.float16]


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles that divide neither the outputs nor the inputs of the tests, and several of both."""
    monkeypatch.setitem(configs.TABLES, "sp24_matvec", (Row(Config({"ROWS": 2, "WORDS": 8}, 1)),))
    monkeypatch.setitem(configs.TABLES, "sp24_unpack", (Row(Config({"WORDS": 8}, 1)),))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("tokens", "biased"), [(1, True), (3, False)])
@pytest.mark.usefixtures("small_tiles")
def test_matvec(tokens: int, biased: bool, dtype: torch.dtype) -> None:
    _check("matvec", (tokens, 3, 384), dtype, biased)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("tokens", "outputs", "inputs"), [(4, 70, 384), (16, 32, 128), (17, 5, 640), (96, 33, 384)])
def test_matmul(tokens: int, outputs: int, inputs: int, dtype: torch.dtype) -> None:
    _check("matmul", (tokens, outputs, inputs), dtype)


@pytest.mark.parametrize(
    ("shape", "tiles", "warps", "dtype"),
    [
        ((9, 16, 512), (1, 1, 8, 1, 1, 1), 1, torch.bfloat16),
        ((5, 20, 96), (1, 1, 8, 4, 1, 1), 4, torch.float16),
        ((3, 30, 1024), (1, 1, 8, 1, 2, 1), 2, torch.float16),
        ((9, 20, 1056), (1, 2, 4, 2, 2, 1), 4, torch.bfloat16),
        ((3, 19, 96), (2, 1, 4, 1, 2, 1), 1, torch.bfloat16),
        ((3, 40, 576), (2, 1, 4, 1, 2, 1), 2, torch.float16),
        ((9, 20, 1600), (1, 2, 4, 2, 2, 2), 4, torch.bfloat16),
        ((3, 40, 1024), (2, 1, 2, 1, 1, 2), 2, torch.float16),
    ],
)
def test_mma(
    shape: tuple[int, int, int],
    tiles: tuple[int, ...],
    warps: int,
    dtype: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Rows and tokens that fill no tile, words that fill no step of the warps, warps along the inputs and along the
    outputs, one step and several, with weights held ahead and without, each group with codes of its own."""
    names = ("ROWS", "TOKENS", "AHEAD", "SPLIT", "BUFFERS", "WIDE")
    sizes = dict(zip(names, tiles, strict=True))
    monkeypatch.setitem(configs.TABLES, "sp24_mma", (Row(Config(sizes, warps)),))
    _check("mma", shape, dtype)


def _check(backend: str, shape: tuple[int, int, int], dtype: torch.dtype, biased: bool = True) -> None:
    """(tokens, outputs, inputs)"""
    tokens, outputs, inputs = shape
    values, meta = sp24_weight(outputs, inputs, dtype)
    x, bias = weight_of(tokens, inputs, dtype, 2), weight_of(1, outputs, dtype, 3)[0] if biased else None
    with poisoned():
        found = OPERATION.run(x, values, meta, bias, backend=backend)
    assert_close(found, exact(x, sp24.unpack(values, meta), bias))
    assert OPERATION.choose(x, values, meta, bias).name != "torch"


@pytest.mark.parametrize("inputs", [32, 96, 160, 576])
@pytest.mark.parametrize(("backend", "tokens"), [("matvec", 1), ("matvec", 3), ("matmul", 5), ("unpack", 5)])
def test_every_width_that_the_layout_holds(backend: str, tokens: int, inputs: int) -> None:
    """Words that are no multiple of the tile, of four or of two; with the tiles that a GPU gets."""
    _check(backend, (tokens, 5, inputs), torch.bfloat16)
    values, meta = sp24_weight(5, inputs, torch.bfloat16)
    with poisoned():
        dense = UNPACK.run(values, meta, backend="triton")
    assert torch.equal(dense.view(torch.int16), sp24.unpack(values, meta).view(torch.int16))


@pytest.mark.parametrize("config", configs.TABLES["sp24_matmul"], ids=str)
def test_every_tile_of_matmul(config: Row, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(configs.TABLES, "sp24_matmul", (Row(config.config),))
    values, meta = sp24_weight(40, 384, torch.bfloat16)
    x = weight_of(5, 384, torch.bfloat16, 2)
    assert_close(OPERATION.run(x, values, meta, None, backend="matmul"), exact(x, sp24.unpack(values, meta), None))


@pytest.mark.parametrize("row", configs.TABLES["sp24_mma"], ids=str)
def test_every_tile_of_mma(row: Row, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(configs.TABLES, "sp24_mma", (Row(row.config),))
    tiles = row.config.tiles
    # Two steps, and a last block that is not full.
    shape = (9, 16, 2 * 512 * tiles["SPLIT"] * tiles["WIDE"] - 480)
    assert sp24_mma.plan(shape, torch.bfloat16, configs.HOPPER)[0]["WIDE"] == tiles["WIDE"]
    _check("mma", shape, torch.bfloat16)


@pytest.mark.parametrize(
    ("inputs", "wide", "ahead"), [(2048, 1, 8), (4096, 2, 4), (5120, 1, 8), (11008, 2, 4), (32, 1, 8)]
)
def test_blocks_lie_side_by_side_where_no_more_would_be_empty(inputs: int, wide: int, ahead: int) -> None:
    constants, *_ = sp24_mma.plan((16, 4096, inputs), torch.bfloat16, configs.HOPPER)
    assert (constants["WIDE"], constants["AHEAD"]) == (wide, ahead)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.usefixtures("small_tiles")
def test_unpack_is_exact(dtype: torch.dtype) -> None:
    values, meta = sp24_weight(3, 384, dtype)
    with poisoned():
        found = UNPACK.run(values, meta, backend="triton")
    assert torch.equal(found.view(torch.int16), sp24.unpack(values, meta).view(torch.int16))


def test_unpack_and_a_dense_product() -> None:
    values, meta = sp24_weight(3, 128, torch.float16)
    x = weight_of(7, 128, torch.float16, 2)
    assert_close(OPERATION.run(x, values, meta, None, backend="unpack"), exact(x, sp24.unpack(values, meta), None))


def test_leading_dimensions_and_other_layouts_of_the_inputs() -> None:
    values, meta = sp24_weight(2, 128, torch.float16)
    whole = weight_of(4 * 128 + 1, 2, torch.float16, 2).T.flatten()
    misaligned, transposed = whole[1 : 1 + 4 * 128].view(2, 2, 128), whole[: 4 * 128].view(128, 2, 2).permute(1, 2, 0)
    for x in (misaligned, transposed):
        found = OPERATION.run(x, values, meta, None, backend="matmul")
        assert found.shape == (2, 2, 2) and found.is_contiguous()
        assert_close(found, exact(x, sp24.unpack(values, meta), None))
    packed = torch.cat([values.flatten()[:1], values.flatten()])[1:].view(values.shape)
    assert packed.data_ptr() % 16
    assert torch.equal(OPERATION.run(misaligned, packed, meta, None), OPERATION.run(misaligned, values, meta, None))


@pytest.mark.parametrize(("tokens", "expected"), [*SP24_CHOICES, (0, "unpack")])
def test_the_tokens_choose(tokens: int, expected: str) -> None:
    values, meta = sp24_weight(2, 128, torch.bfloat16)
    x = torch.zeros(tokens, 128, dtype=torch.bfloat16)
    assert OPERATION.choose(x, values, meta, None).name == expected


@pytest.mark.parametrize(
    ("inputs", "dtype", "x_dtype", "reason"),
    [
        (80, torch.bfloat16, torch.bfloat16, "80 inputs: it takes multiples of 32"),
        (128, torch.float32, torch.float32, "the weights are torch.float32"),
        (128, torch.bfloat16, torch.float16, "x is torch.float16 and the weights are torch.bfloat16"),
    ],
)
def test_what_a_kernel_does_not_cover(inputs: int, dtype: torch.dtype, x_dtype: torch.dtype, reason: str) -> None:
    values, meta = sp24_weight(2, 128, dtype)
    values, x = values[:, : inputs // 2], torch.zeros(2, inputs, dtype=x_dtype)
    with pytest.raises(CrepeError, match=reason):
        OPERATION.run(x, values, meta, None, backend="matvec")
    if dtype == x_dtype:
        assert OPERATION.choose(x, values, meta, None).name == "torch"


def test_a_weight_of_another_shape_reaches_no_kernel() -> None:
    values, meta = sp24_weight(4, 256, torch.bfloat16)
    x = torch.zeros(1, 256, dtype=torch.bfloat16)
    for arguments in [
        (x[:, :128], values, meta, None),
        (x, values[:, :64], meta, None),
        (x, values, meta[:2], None),
        (x, values, meta.long(), None),
        (x, values, meta, torch.zeros(3, dtype=torch.bfloat16)),
    ]:
        with pytest.raises(CrepeError, match="cannot run on backend 'matvec'"):
            OPERATION.run(*arguments, backend="matvec")
