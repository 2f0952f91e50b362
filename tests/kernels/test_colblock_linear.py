"""The operation on balanced column blocks as torch sees it, and on a GPU where there is one."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import library

from crepe.errors import CrepeError
from crepe.kernels.operations.colblock_linear import OPERATION, _layout_obstacle, colblock_linear
from crepe.kernels.reference import colblock
from crepe.masks import ColBlock
from gpu import needs_gpu, replayed
from sparse_weights import assert_close, colblock_weight, exact, poisoned, strided, weight_of


@pytest.mark.parametrize("sparsity", [0.5, 1.0])
def test_torch_may_trust_the_custom_op(sparsity: float) -> None:
    values, blocks = colblock_weight(6, 32, ColBlock(4, 8), torch.float32, sparsity)
    x, bias = weight_of(2, 32, torch.float32), weight_of(1, 6, torch.float32)[0]
    for arguments in [(x, values, blocks, 4, 8, None), (x.reshape(2, 1, 32), values, blocks, 4, 8, bias)]:
        library.opcheck(torch.ops.crepe.colblock_linear, arguments)
        library.opcheck(torch.ops.crepe.colblock_linear, tuple(map(strided, arguments)))


def test_without_a_gpu_the_reference_runs_and_names_are_refused() -> None:
    pattern = ColBlock(16, 8)
    values, blocks = colblock_weight(32, 64, pattern, torch.bfloat16)
    x = weight_of(8, 64, torch.bfloat16)
    expected = colblock.linear(x, values, blocks, pattern, None)
    assert torch.equal(colblock_linear(x, values, blocks, 16, 8), expected)
    assert OPERATION.choose(x, values, blocks, 16, 8, None).name == "torch"
    with pytest.raises(CrepeError, match="'matmul': it needs a GPU"):
        OPERATION.run(x, values, blocks, 16, 8, None, backend="matmul")
    with pytest.raises(CrepeError, match="'matvec': x has 8 tokens: it takes 1 to 3"):
        OPERATION.run(x, values, blocks, 16, 8, None, backend="matvec")


@needs_gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("pattern", [ColBlock(16, 8), ColBlock(32, 64), ColBlock(64, 16), ColBlock(128, 32)], ids=str)
@pytest.mark.parametrize("shape", [(512, 2048), (1000, 3584), (8500, 1472)])
def test_gpu_products(shape: tuple[int, int], pattern: ColBlock, dtype: torch.dtype) -> None:
    outputs, inputs = shape
    values, blocks = (tensor.cuda() for tensor in colblock_weight(outputs, inputs, pattern, dtype))
    weight, bias = colblock.unpack(values, blocks, pattern, inputs), weight_of(1, outputs, dtype, 3)[0].cuda()
    for tokens, some_bias in product((1, 3, 4, 17, 33, 100, 300, 520), (None, bias)):
        x = weight_of(tokens, inputs, dtype, 2).cuda()
        with poisoned():
            found = colblock_linear(x, values, blocks, pattern.rows, pattern.columns, some_bias)
        assert_close(found, exact(x, weight, some_bias))


def test_weights_that_32_bits_cannot_count_are_not_for_kernels() -> None:
    values, blocks = torch.empty(1 << 17, 1 << 14, device="meta"), torch.empty(1 << 11, 1 << 11, dtype=torch.int32)
    assert "2147483648 values" in str(_layout_obstacle(values, blocks, 64, 8))
    assert _layout_obstacle(values[64:], blocks[1:], 64, 8) is None


@needs_gpu
@pytest.mark.parametrize("tokens", [1, 8, 600])
def test_gpu_graphs_and_compiled_layers(tokens: int) -> None:
    values, blocks = (tensor.cuda() for tensor in colblock_weight(512, 1024, ColBlock(64, 8), torch.bfloat16))
    x, other = (weight_of(tokens, 1024, torch.bfloat16, seed).cuda() for seed in (2, 3))
    expected = colblock_linear(other, values, blocks, 64, 8)
    assert torch.equal(replayed(lambda inputs: colblock_linear(inputs, values, blocks, 64, 8), x, other), expected)
    compiled = torch.compile(lambda y: torch.ops.crepe.colblock_linear(y, values, blocks, 64, 8), fullgraph=True)
    assert torch.equal(compiled(other), expected)
