"""Multi-head attentions: finding them by structure, and making their heads smaller."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from crepe.vision.methods.base import HeadChoice, Heads

# Names of the three projections and of the number of heads, in all libraries that crepe reads.
_QUERY, _KEY, _VALUE = (
    ("q_proj", "query", "q", "to_q"),
    ("k_proj", "key", "k", "to_k"),
    ("v_proj", "value", "v", "to_v"),
)
_HEADS = ("num_attention_heads", "num_heads", "n_heads")


@dataclass(frozen=True)
class Attention:
    """Paths of an attention module and of its projections, and how many heads it has."""

    name: str
    heads: int
    query: str
    key: str
    value: str
    output: str


def find_attentions(model: nn.Module) -> list[Attention]:
    """Modules with Linear layers for queries, keys and values, a fourth that reads the values, and equal heads."""
    found = []
    for name, module in model.named_modules():
        linears = {leaf: child for leaf, child in module.named_children() if isinstance(child, nn.Linear)}
        parts = [next((n for n in names if n in linears), None) for names in (_QUERY, _KEY, _VALUE)]
        heads = next((getattr(module, n) for n in _HEADS if isinstance(getattr(module, n, None), int)), 0)
        query, key, value = parts
        if query is None or key is None or value is None or heads < 1:
            continue
        width = linears[value].out_features
        last = [n for n, child in linears.items() if n not in parts and child.in_features == width]
        equal = linears[query].out_features == linears[key].out_features == width
        if len(last) == 1 and equal and width % heads == 0:
            prefix = name + "." if name else ""
            found.append(Attention(name, heads, *(prefix + n for n in (query, key, value, last[0]))))
    return found


def heads_of(model: nn.Module, attention: Attention, index: int) -> Heads:
    """The weights as a method sees them, (heads, d, n) each."""
    weights = {part: _weight(model, getattr(attention, part)) for part in ("query", "key", "value", "output")}
    rows = {p: w.view(attention.heads, -1, w.shape[1]) for p, w in weights.items() if p != "output"}
    output = weights["output"].T.contiguous()
    return Heads(attention.name, index, **rows, output=output.view(attention.heads, -1, output.shape[1]))


def head_masks(model: nn.Module, attention: Attention, choice: HeadChoice) -> dict[str, Tensor]:
    """Masks, True = kept, of the rows of queries, keys and values that go: parameter name -> bool of its shape."""
    masks = {}
    for part, kept in _kept_rows(model, attention, choice).items():
        if part != "output":
            name = getattr(attention, part)
            for leaf, parameter in model.get_submodule(name).named_parameters(recurse=False):
                mask = torch.zeros_like(parameter, dtype=torch.bool)
                mask[kept] = True
                masks[f"{name}.{leaf}"] = mask
    return masks


def cut_heads(model: nn.Module, attention: Attention, choice: HeadChoice) -> dict[str, Any]:
    """Make the heads smaller, in place; returns the attributes of the module that changed with them.

    The factor of the logits stays that of the dense heads: it is not read from the smaller width.
    """
    module = model.get_submodule(attention.name)
    width = model.get_submodule(attention.value).out_features
    for part, kept in _kept_rows(model, attention, choice).items():
        _slice(model.get_submodule(getattr(attention, part)), kept, 1 if part == "output" else 0)
    before, after = int(width) // attention.heads, choice.value_output.shape[1]  # type: ignore[arg-type]
    new = {before: after, before * attention.heads: after * attention.heads}
    sizes = {
        k: v for k, v in vars(module).items() if isinstance(v, int) and "head" in k and ("dim" in k or "size" in k)
    }
    changed = {key: new[value] for key, value in sizes.items() if value in new}
    for key, value in changed.items():
        setattr(module, key, value)
    return changed


def _kept_rows(model: nn.Module, attention: Attention, choice: HeadChoice) -> dict[str, Tensor]:
    """Rows of each projection, columns of the output's, that stay."""
    width = int(model.get_submodule(attention.value).out_features)  # type: ignore[arg-type]
    starts = torch.arange(attention.heads)[:, None] * (width // attention.heads)
    query_key, value_output = ((starts + kept.cpu()).flatten() for kept in (choice.query_key, choice.value_output))
    return {"query": query_key, "key": query_key, "value": value_output, "output": value_output}


def _slice(layer: Any, kept: Tensor, axis: int) -> None:
    layer.weight = nn.Parameter(layer.weight.detach().index_select(axis, kept).contiguous())
    if axis == 0 and layer.bias is not None:
        layer.bias = nn.Parameter(layer.bias.detach()[kept].contiguous())
    layer.out_features, layer.in_features = layer.weight.shape


def _weight(model: nn.Module, name: str) -> Tensor:
    weight: Tensor = model.get_submodule(name).weight.detach().float()  # type: ignore[operator]
    return weight
