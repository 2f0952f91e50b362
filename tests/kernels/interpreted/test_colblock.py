"""The kernels for balanced column blocks on the CPU, and the dense kernel that they are held against."""

from __future__ import annotations

import pytest
import torch

from crepe.errors import CrepeError
from crepe.kernels.operations.colblock_linear import OPERATION
from crepe.kernels.reference import colblock
from crepe.kernels.triton import colblock_matmul, configs
from crepe.kernels.triton.configs import Config, Row
from crepe.kernels.triton.transpose import exchanged
from crepe.masks import ColBlock
from sparse_weights import assert_close, colblock_weight, exact, poisoned, weight_of

DTYPES = [torch.bfloat16, torch.float16]
# Outputs that fill no tile, kept inputs that fill no step.
SHAPES = [
    (70, 256, ColBlock(32, 8)),
    (40, 576, ColBlock(16, 32)),
    (130, 320, ColBlock(128, 16)),
    (9, 704, ColBlock(64, 64)),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("outputs", "inputs", "pattern"), SHAPES)
@pytest.mark.parametrize("tokens", [4, 17])
def test_matmul(tokens: int, outputs: int, inputs: int, pattern: ColBlock, dtype: torch.dtype) -> None:
    _check("matmul", tokens, outputs, inputs, pattern, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("outputs", "inputs", "pattern"), SHAPES[:3])
def test_prefill(
    outputs: int, inputs: int, pattern: ColBlock, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(configs.TABLES, "colblock_prefill", (Row(Config({"BN": 32, "BM": 32, "BK": 32}, 2)),))
    _check("prefill", 37, outputs, inputs, pattern, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("outputs", "inputs", "pattern"), [(18, 152, ColBlock(16, 8)), (5, 192, ColBlock(16, 64))])
@pytest.mark.parametrize("tokens", [1, 3])
def test_matvec(
    tokens: int,
    outputs: int,
    inputs: int,
    pattern: ColBlock,
    dtype: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(configs.TABLES, "colblock_matvec", (Row(Config({"ROWS": 4, "PIECES": 8}, 1)),))
    _check("matvec", tokens, outputs, inputs, pattern, dtype)


@pytest.mark.parametrize("inputs", [16, 24, 40, 576])
@pytest.mark.parametrize(("backend", "tokens"), [("matvec", 2), ("matmul", 5), ("prefill", 5)])
def test_every_width_that_the_layout_holds(backend: str, tokens: int, inputs: int) -> None:
    """Kept inputs from one block to more than a tile, with the tiles that a GPU gets."""
    _check(backend, tokens, 20, inputs, ColBlock(16, 8), torch.bfloat16)


@pytest.mark.parametrize(("tokens", "inputs"), [(1, 8), (64, 64), (70, 72)])
def test_exchanged_activations_end_in_zeros(tokens: int, inputs: int) -> None:
    x = weight_of(tokens, inputs, torch.bfloat16)
    with poisoned():
        found = exchanged(x, 128)
    assert found.shape == (inputs, 128)
    assert torch.equal(found[:, :tokens], x.T) and not found[:, tokens:].any()


@pytest.mark.parametrize("backend", ["matmul", "prefill"])
def test_an_input_that_no_block_keeps_may_be_infinite(backend: str) -> None:
    """Also where the last step holds fewer inputs than a tile, and reads the first input in their place."""
    pattern = ColBlock(16, 8)
    score = torch.ones(16, 48)
    score[:, :8] = 0
    kept = pattern.select(score, 1 / 6)
    assert not kept[:, :8].any()
    values, blocks = colblock.pack(weight_of(16, 48, torch.bfloat16) * kept, kept, pattern)
    x = weight_of(5, 48, torch.bfloat16, 2)
    x[:, 0] = torch.inf
    found = OPERATION.run(x, values, blocks, 16, 8, None, backend=backend)
    x[:, 0] = 0
    assert_close(found, exact(x, colblock.unpack(values, blocks, pattern, 48), None))


@pytest.mark.parametrize("row", configs.TABLES["colblock_matmul"], ids=str)
def test_every_tile_of_matmul(row: Row, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(configs.TABLES, "colblock_matmul", (Row(row.config),))
    _check("matmul", 5, 72, 320, ColBlock(64, 8), torch.bfloat16)
    constants, *_ = colblock_matmul.plan((5, 72, 320), 160, 64, 8, False, configs.HOPPER)
    assert constants["BK"] == row.config.tiles["BK"]


def _check(backend: str, tokens: int, outputs: int, inputs: int, pattern: ColBlock, dtype: torch.dtype) -> None:
    values, blocks = colblock_weight(outputs, inputs, pattern, dtype)
    x, bias = weight_of(tokens, inputs, dtype, 2), weight_of(1, outputs, dtype, 3)[0]
    with poisoned():
        found = OPERATION.run(x, values, blocks, pattern.rows, pattern.columns, bias, backend=backend)
    assert_close(found, exact(x, colblock.unpack(values, blocks, pattern, inputs), bias))


@pytest.mark.parametrize(
    ("tokens", "columns", "expected"),
    [
        (1, 8, "matvec"),
        (3, 8, "matvec"),
        (4, 8, "matmul"),
        (511, 8, "matmul"),
        (512, 8, "prefill"),
        (5000, 16, "matmul"),
    ],
)
def test_tokens_and_columns_choose(tokens: int, columns: int, expected: str) -> None:
    values, blocks = colblock_weight(32, 64, ColBlock(32, columns), torch.bfloat16)
    x = torch.zeros(tokens, 64, dtype=torch.bfloat16)
    assert OPERATION.choose(x, values, blocks, 32, columns, None).name == expected


@pytest.mark.parametrize(
    ("pattern", "sparsity", "reason"),
    [
        (ColBlock(24, 8), 0.5, "its tiles have 24 rows"),
        (ColBlock(32, 4), 0.5, "its blocks have 4 columns"),
        (ColBlock(32, 8), 1.0, "no block is kept"),
    ],
)
def test_what_a_kernel_does_not_cover(pattern: ColBlock, sparsity: float, reason: str) -> None:
    values, blocks = colblock_weight(48, 64, pattern, torch.bfloat16, sparsity)
    arguments = (torch.zeros(2, 64, dtype=torch.bfloat16), values, blocks, pattern.rows, pattern.columns, None)
    with pytest.raises(CrepeError, match=reason):
        OPERATION.run(*arguments, backend="matmul")
    assert OPERATION.choose(*arguments).name == "torch"


def test_tensors_that_do_not_belong_together_reach_no_kernel() -> None:
    values, blocks = colblock_weight(64, 64, ColBlock(32, 8), torch.bfloat16)
    x = torch.zeros(1, 64, dtype=torch.bfloat16)
    for arguments in [
        (x[:, :20], values, blocks, 32, 8, None),
        (x, values, blocks[:1], 32, 8, None),
        (x, values, blocks, 32, 16, None),
        (x, values, blocks.long(), 32, 8, None),
        (x.half(), values, blocks, 32, 8, None),
        (x, values, blocks, 32, 8, torch.zeros(1, dtype=torch.bfloat16)),
    ]:
        with pytest.raises(CrepeError, match="cannot run on backend 'matvec'"):
            OPERATION.run(*arguments, backend="matvec")


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_dense_kernel(dtype: torch.dtype) -> None:
    from crepe.kernels.triton.dense_matvec import matvec

    x, weight = weight_of(2, 520, dtype, 2), weight_of(6, 520, dtype)
    assert_close(matvec(x, weight), exact(x, weight, None))


def test_wide_blocks_are_too_wide_for_a_step_of_prefill() -> None:
    values, blocks = colblock_weight(64, 128, ColBlock(64, 64), torch.bfloat16)
    arguments = (torch.zeros(600, 128, dtype=torch.bfloat16), values, blocks, 64, 64, None)
    with pytest.raises(CrepeError, match="its blocks have 64 columns: it takes up to 32"):
        OPERATION.run(*arguments, backend="prefill")
    assert OPERATION.choose(*arguments).name == "matmul"
