"""Units of every kind of block: what belongs to them is found, and what only looks like a unit is not taken for one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from crepe.models.blocks import Block, find_blocks
from crepe.models.coupling import Memory
from crepe.models.units import Found, UnitGroup, find_units
from crepe.pipeline.fold import run_once
from crepe.pipeline.walk import Walk, forward_tokens
from families import tiny_model

ROWS = torch.randint(3, 128, (1, 24), generator=torch.Generator().manual_seed(0))
# Of the last block: consumer -> units, heads of each, columns of each, and the parts beside the consumer.
SEPARATE = [("q_proj.weight", 16), ("k_proj.weight", 8), ("v_proj.weight", 8)]
HEADS: dict[str, tuple[int, int, int, list[tuple[str, int]]]] = {
    "llama": (2, 2, 16, SEPARATE),
    "qwen2": (2, 2, 16, [*SEPARATE, ("q_proj.bias", 16), ("k_proj.bias", 8), ("v_proj.bias", 8)]),
    "qwen3": (2, 2, 16, SEPARATE),
    "phi3": (2, 2, 16, [("qkv_proj.weight", 32)]),
    "gpt2": (4, 1, 8, [("c_attn.weight", 24), ("c_attn.bias", 24)]),
    "gpt_neox": (4, 1, 8, [("query_key_value.weight", 24), ("query_key_value.bias", 24)]),
    "deepseek_v3": (4, 1, 8, [("q_b_proj.weight", 16), ("kv_b_proj.weight", 16)]),
}
# Of the last block: channels of each consumer.
CHANNELS = {
    "llama": {"mlp.down_proj.weight": 64},
    "phi3": {"mlp.down_proj.weight": 64},
    "gpt2": {"mlp.c_proj.weight": 64},
    "bloom": {"mlp.dense_4h_to_h.weight": 128},
    "qwen3_moe": {f"mlp.experts.down_proj[{e}]": 16 for e in range(4)},
    "gpt_oss": {f"mlp.experts.down_proj[{e}]": 64 for e in range(4)},
    "mamba": {},
}


def _found(model: Any, unit: str) -> list[Found]:
    """Block by block, as a run finds them."""
    walk, memory = Walk(model, find_blocks(model), [ROWS]), Memory()
    found = []
    with walk.started():
        for block in walk.blocks:
            found.append(find_units(block, run_once(block, walk), unit, memory))
            walk.advance(block)
    return found


def _with_vectors(model_type: str) -> Any:
    model = tiny_model(model_type)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:  # biases at zero would hide mistakes
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    return model


@pytest.mark.parametrize("model_type", CHANNELS)
def test_channels_are_found(model_type: str) -> None:
    model = tiny_model(model_type)
    prefix = find_blocks(model)[-1].name + "."
    last = _found(model, "channel")[-1]
    assert {group.name.removeprefix(prefix): group.units for group in last.groups} == CHANNELS[model_type]
    assert bool(last.reason) == (not last.groups)


@pytest.mark.parametrize("model_type", HEADS)
def test_heads_are_found_with_their_queries_and_keys(model_type: str) -> None:
    (group,) = _found(tiny_model(model_type), "head")[-1].groups
    units, heads, width, parts = HEADS[model_type]
    assert (group.units, group.heads, group.width) == (units, heads, width)
    found = {(".".join(part.name.split(".")[-2:]), part.index.shape[1]) for part in group.parts[1:]}
    assert found == set(parts)


def test_attention_sinks_go_with_their_heads() -> None:
    (group,) = _found(tiny_model("gpt_oss"), "head")[-1].groups
    (sinks,) = [part for part in group.vectors if part.attribute == "sinks"]
    assert sinks.index.tolist() == [[0, 1], [2, 3]]


@pytest.mark.parametrize(
    ("model_type", "reason"),
    [
        ("gpt_bigcode", "one key-value head"),
        ("mamba", "no attention"),
        ("olmo2", "queries and keys"),  # a norm over all heads tells how many there are
    ],
)
def test_why_there_are_no_heads(model_type: str, reason: str) -> None:
    last = _found(tiny_model(model_type), "head")[-1]
    assert not last.groups and reason in last.reason


@pytest.mark.parametrize("unit", ["channel", "head"])
@pytest.mark.parametrize("model_type", ["llama", "gpt2", "phi3", "qwen3_moe", "gpt_oss", "deepseek_v3"])
def test_the_model_without_units_is_the_model_without_their_columns(model_type: str, unit: str) -> None:
    """With its own weights, over all blocks; and looking for units leaves the weights as they are."""
    model = _with_vectors(model_type)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    groups = [group for found in _found(model, unit) for group in found.groups]
    assert groups and all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    dense = _logits(model)
    _clear(groups, lambda group: [group.consumer])
    masked = _logits(model)
    _clear(groups, lambda group: list(group.parts))
    assert (masked - dense).abs().max() > 1e-3
    assert (masked - _logits(model)).abs().max() < 1e-5


def _clear(groups: list[UnitGroup], parts: Callable[[UnitGroup], list[Any]]) -> None:
    for group in groups:
        for part in parts(group):
            part.clear(torch.arange(group.units) % 3 == 0)


def _logits(model: Any) -> Tensor:
    with torch.no_grad():
        logits: Tensor = forward_tokens(model, ROWS).logits
    return logits


class _Mlp(nn.Module):
    def __init__(self, between: nn.Module) -> None:
        super().__init__()
        self.a, self.between, self.b = nn.Linear(16, 32), between, nn.Linear(32, 16)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.b(self.between(self.a(x)))
        return x + y


@pytest.mark.parametrize(
    ("between", "fits"),
    [
        (nn.GELU(), True),
        # These stay the same when channels change places, but not when some are missing.
        (nn.LayerNorm(32, elementwise_affine=False), False),
        (nn.Softmax(-1), False),
    ],
)
def test_channels_that_know_their_number_are_no_units(between: nn.Module, fits: bool) -> None:
    torch.manual_seed(0)
    module, x = _Mlp(between), torch.randn(1, 20, 16)
    found = find_units(Block("block", module), lambda: module(x).detach(), "channel")
    assert bool(found.groups) == fits
