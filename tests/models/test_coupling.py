"""Couplings of every family leave the model as it is; wrong ones are caught, whatever the weights hide."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from crepe.models.blocks import Block, find_blocks
from crepe.models.coupling import (
    Coupling,
    Memory,
    Producer,
    find_couplings,
    permute_coupling,
    random_order,
    verified,
)
from crepe.models.views import inventory
from crepe.pipeline.walk import Walk, forward_tokens
from families import FAMILIES, tiny_model

ROWS = torch.randint(3, 128, (2, 24), generator=torch.Generator().manual_seed(0))
# Consumers of the last block with the shape of their movable columns (key-value heads, heads of each, size).
HEADS, FREE = (2, 2, 8), (1, 1, 64)
EXPECTED: dict[str, dict[str, tuple[int, int, int]]] = {
    "llama": {"self_attn.o_proj.weight": HEADS, "mlp.down_proj.weight": FREE},
    "qwen2": {"self_attn.o_proj.weight": HEADS, "mlp.down_proj.weight": FREE},
    "gemma": {"self_attn.o_proj.weight": HEADS, "mlp.down_proj.weight": FREE},
    "gpt2": {"attn.c_proj.weight": (4, 1, 8), "mlp.c_proj.weight": FREE},
    "opt": {"self_attn.out_proj.weight": (4, 1, 8), "fc2.weight": FREE},
    "phi3": {"self_attn.o_proj.weight": HEADS, "mlp.down_proj.weight": FREE},
    "gpt_neox": {"attention.dense.weight": (4, 1, 8), "mlp.dense_4h_to_h.weight": FREE},
    "gpt_bigcode": {"attn.c_proj.weight": (1, 4, 8), "mlp.c_proj.weight": FREE},
    "mixtral": {"self_attn.o_proj.weight": HEADS, **{f"mlp.experts.down_proj[{e}]": FREE for e in range(4)}},
    "gpt_oss": {"self_attn.o_proj.weight": HEADS, **{f"mlp.experts.down_proj[{e}]": FREE for e in range(4)}},
    # A linear recurrence with a convolution lies between the two projections.
    "mamba": {},
}


def _couplings(model: Any, memory: Memory | None = None) -> list[list[Coupling]]:
    """Block by block, as a run finds them."""
    walk = Walk(model, find_blocks(model), [ROWS])
    found = []
    with walk.started():
        for block in walk.blocks:
            found.append(find_couplings(block, lambda b=block: _run(walk, b), memory))  # type: ignore[misc]
            walk.advance(block)
    return found


def _run(walk: Walk, block: Block) -> object:
    return list(walk.run(block)), [call.kwargs for call in walk.calls(block)]


def _logits(model: Any) -> Tensor:
    with torch.no_grad():
        logits: Tensor = forward_tokens(model, ROWS).logits
    return logits.float()


@pytest.mark.parametrize("model_type", [family for family in FAMILIES if family != "zamba2"])
def test_the_model_stays_the_same(model_type: str) -> None:
    model = tiny_model(model_type)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:  # biases at zero and norms at one would hide mistakes
                parameter.add_(0.1 * torch.randn(parameter.shape))
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    before = _logits(model)
    found = _couplings(model, {})
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    generator = torch.Generator().manual_seed(1)
    for coupling in (coupling for block in found for coupling in block):
        permute_coupling(coupling, random_order(coupling, generator))
    assert (_logits(model) - before).abs().max() < 1e-5 * before.abs().max().clamp(min=1)
    if model_type in EXPECTED:
        prefix = find_blocks(model)[-1].name + "."
        assert {c.consumer.name.removeprefix(prefix): tuple(c.columns.shape) for c in found[-1]} == EXPECTED[model_type]


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "opt", "gpt_oss"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_find_the_same(model_type: str, dtype: torch.dtype) -> None:
    def shapes(model: Any) -> list[tuple[str, torch.Size]]:
        return [(c.consumer.name, c.columns.shape) for block in _couplings(model, {}) for c in block]

    assert shapes(tiny_model(model_type).to(dtype)) == shapes(tiny_model(model_type))


def test_memory_spares_the_search_in_blocks_of_one_structure() -> None:
    memory: Memory = {}
    model = tiny_model("opt")
    first = _couplings(model, memory)
    walk, runs = Walk(model, find_blocks(model), [ROWS]), []

    def run() -> object:
        runs.append(1)
        return _run(walk, walk.blocks[0])

    with walk.started():
        again = find_couplings(walk.blocks[0], run, memory)
    assert [c.consumer for c in again] == [c.consumer for c in first[0]]
    assert len(runs) == 2 + 2 * len(again)


# Hand-made blocks


class _Mlp(nn.Module):
    """between: what lies between the two matrices."""

    def __init__(self, between: nn.Module, wide: int = 32) -> None:
        super().__init__()
        self.a, self.between, self.b = nn.Linear(16, wide), between, nn.Linear(wide, 16)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.b(self.between(self.a(x)))
        return x + y


def _block(module: nn.Module) -> tuple[Block, Callable[[], Tensor]]:
    x = torch.randn(20, 16, generator=torch.Generator().manual_seed(0))
    return Block("block", module), lambda: module(x).detach()


def _candidate(block: Block, *rows: Tensor) -> Coupling:
    first, second = inventory(block, None).views
    columns = torch.arange(second.shape[1]).reshape(1, 1, -1)
    return Coupling(second, columns, tuple(Producer(first, part[None]) for part in rows))


@pytest.mark.parametrize(
    ("between", "coupled"),
    [
        (nn.GELU(), True),
        (nn.LayerNorm(32, elementwise_affine=False), True),
        (nn.LayerNorm(32), False),
        (nn.RMSNorm(32), False),
        (nn.Softmax(-1), True),
        (nn.Sequential(nn.GELU(), nn.Linear(32, 32)), False),
        (nn.AvgPool1d(3, 1, 1), False),
    ],
)
def test_what_mixes_or_tells_channels_apart_is_caught(between: nn.Module, coupled: bool) -> None:
    """Also where, as in a fresh norm, the weight is one for every channel."""
    torch.manual_seed(0)
    block, run = _block(_Mlp(between))
    consumers = [c.consumer.name for c in find_couplings(block, run)]
    assert ("block.b.weight" in consumers) == coupled


class _Fused(nn.Module):
    def __init__(self, interleaved: bool) -> None:
        super().__init__()
        self.a, self.b, self.interleaved = nn.Linear(16, 64), nn.Linear(32, 16), interleaved

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        gate, up = (y[..., 0::2], y[..., 1::2]) if self.interleaved else y.chunk(2, -1)
        z: Tensor = self.b(gate.sigmoid() * up)
        return x + z


@pytest.mark.parametrize("interleaved", [False, True])
def test_both_ways_to_fuse(interleaved: bool) -> None:
    torch.manual_seed(0)
    block, run = _block(_Fused(interleaved))
    rows = torch.arange(64)
    behind, in_turn = (rows[:32], rows[32:]), (rows[0::2], rows[1::2])
    right, wrong = (in_turn, behind) if interleaved else (behind, in_turn)
    assert verified([_candidate(block, *right)], run)
    assert not verified([_candidate(block, *wrong)], run)
    assert not verified([_candidate(block, right[1])], run)
    (found,) = find_couplings(block, run)
    assert [p.rows.tolist() for p in found.producers] == [[part.tolist()] for part in right]


def test_nothing_shown_is_no() -> None:
    """An expert that no token reaches must not be taken for one that does not change."""
    torch.manual_seed(0)
    block, _ = _block(_Mlp(nn.GELU()))
    assert not verified([_candidate(block, torch.arange(32))], lambda: torch.ones(3))


def test_what_later_blocks_see_must_stay_too() -> None:
    """Values kept for later layers, say, whose own projections would not follow."""
    torch.manual_seed(0)
    module = _Mlp(nn.GELU())
    block, run = _block(module)
    x = torch.randn(20, 16)
    assert find_couplings(block, run)
    assert not find_couplings(block, lambda: {"output": module(x).detach(), "kept": [module.a(x).detach()]})


@given(st.sampled_from([(1, 1, 32), (2, 2, 8), (4, 1, 8)]), st.integers(0, 99), st.booleans())
@settings(max_examples=20, deadline=None)
def test_moving_is_exact_and_can_be_undone(shape: tuple[int, int, int], seed: int, half: bool) -> None:
    module = _Mlp(nn.Identity()).to(torch.bfloat16 if half else torch.float32)
    block = Block("", module)
    first, second = inventory(block, None).views
    blocks, _, size = shape
    rows = torch.arange(blocks * size).reshape(blocks, size)
    coupling = Coupling(second, torch.arange(32).reshape(shape), (Producer(first, rows),))
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    order = random_order(coupling, torch.Generator().manual_seed(seed))
    assert not (order == torch.arange(32)).any()
    permute_coupling(coupling, order)
    assert torch.equal(module.b.weight, before["b.weight"][:, order])
    to = rows.gather(1, coupling.inner(order)).reshape(-1)
    assert torch.equal(module.a.weight[: len(to)], before["a.weight"][to])
    assert torch.equal(module.a.bias[: len(to)], before["a.bias"][to])
    permute_coupling(coupling, order.argsort())
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


@pytest.mark.parametrize(
    "order",
    [
        torch.arange(32).roll(1),
        torch.cat([torch.arange(8).roll(1), torch.arange(8, 32)]),
        torch.zeros(32, dtype=torch.int64),
    ],
)
def test_orders_that_the_rows_cannot_follow_are_refused(order: Tensor) -> None:
    """Across heads, heads of one key-value head apart, no order at all; nothing is moved."""
    module = _Mlp(nn.Identity())
    first, second = inventory(Block("block", module), None).views
    coupling = Coupling(second, torch.arange(32).reshape(2, 2, 8), (Producer(first, torch.arange(16).reshape(2, 8)),))
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    with pytest.raises(ValueError, match=r"'block.b.weight'"):
        permute_coupling(coupling, order)
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


def test_what_is_no_number_shows_nothing() -> None:
    """A block that overflows with the random weights of the check must not pass for one that nothing changes."""
    from crepe.models.probe import unchanged

    block = find_blocks(tiny_model("llama"))[0]
    found = find_couplings(block, lambda: torch.full((4,), float("nan")))
    assert found == []
    fine, broken = torch.ones(4), torch.tensor([1.0, 1.0, 1.0, float("nan")])
    assert not unchanged(fine, broken, fine + 1)
