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
from crepe.pipeline.unread import STREAMS, Unread
from crepe.pipeline.walk import Walk, forward_tokens
from families import tiny_model

_UNITS = ("channel", "head")
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
    # These return their attention weights as well.
    "gptj": (4, 1, 8, [("q_proj.weight", 8), ("k_proj.weight", 8), ("v_proj.weight", 8)]),
    "gpt_neo": (4, 1, 8, [("q_proj.weight", 8), ("k_proj.weight", 8), ("v_proj.weight", 8)]),
    "bloom": (4, 1, 8, [("query_key_value.weight", 24), ("query_key_value.bias", 24)]),
    "mpt": (4, 1, 8, [("Wqkv.weight", 24)]),
    "codegen": (4, 1, 8, [("qkv_proj.weight", 24)]),
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
    walk, memory, unread = Walk(model, find_blocks(model), [ROWS], STREAMS), Memory(), Unread()
    found = []
    with walk.started():
        for block in walk.blocks:
            found.append(find_units(block, unread.run_once(block, walk), unit, memory))
            walk.advance(block)
    assert not unread.read
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


def test_heads_of_a_fused_matrix_in_four_groups_are_found() -> None:
    """Queries, values and keys of two heads, then those of the next two, and so on."""
    (group,) = _found(tiny_model("codegen", n_head=8, num_attention_heads=8), "head")[-1].groups
    (fused,) = group.producers
    assert (group.units, group.width) == (8, 4)
    assert fused.index[1].tolist() == [*range(4, 8), *range(12, 16), *range(20, 24)]
    assert fused.index[2].tolist() == [*range(24, 28), *range(32, 36), *range(40, 44)]


def test_attention_sinks_go_with_their_heads() -> None:
    (group,) = _found(tiny_model("gpt_oss"), "head")[-1].groups
    (sinks,) = [part for part in group.vectors if part.attribute == "sinks"]
    assert sinks.index.tolist() == [[0, 1], [2, 3]]


@pytest.mark.parametrize(
    ("model_type", "reason"),
    [
        ("gpt_bigcode", "one key-value head"),
        ("mamba", "no attention"),
        # A norm over all heads tells how many there are.
        ("olmo2", "queries and keys"),
        ("olmo3", "queries and keys"),
    ],
)
def test_why_there_are_no_heads(model_type: str, reason: str) -> None:
    last = _found(tiny_model(model_type), "head")[-1]
    assert not last.groups and reason in last.reason


@pytest.mark.parametrize(
    ("model_type", "unit"),
    [
        *((name, unit) for name in ("llama", "gpt2", "phi3", "qwen3_moe", "gpt_oss", "deepseek_v3") for unit in _UNITS),
        *((name, "head") for name in ("gptj", "gpt_neo", "bloom", "mpt", "codegen")),
    ],
)
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
