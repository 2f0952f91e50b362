"""Multi-head attentions: finding them by structure, and making their heads smaller."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from crepe.vision.heads import AttentionWeights
from crepe.vision.methods.base import HeadChoice, Heads

# Names of the three projections and of the number of heads, in all libraries that crepe reads.
_QUERY, _KEY, _VALUE = (
    ("q_proj", "query", "q", "to_q"),
    ("k_proj", "key", "k", "to_k"),
    ("v_proj", "value", "v", "to_v"),
)
# One Linear for all three, queries of all heads first, then keys, then values.
_FUSED = ("qkv", "to_qkv", "qkv_proj", "query_key_value")
_HEADS = ("num_attention_heads", "num_heads", "n_heads")
_SCALES = ("scale", "scaling")


@dataclass(frozen=True)
class Attention:
    """Paths of an attention module and of its projections, and how many heads it has. Where one Linear makes queries,
    keys and values, all three paths are its path."""

    name: str
    heads: int
    query: str
    key: str
    value: str
    output: str

    @property
    def fused(self) -> bool:
        return self.query == self.value


def find_attentions(model: nn.Module) -> list[Attention]:
    """Modules with Linear layers for queries, keys and values, or one for all three, another that reads the values, and
    equal heads. Norms over the dimensions of a head tie these together, so modules with them are left out."""
    found = []
    for name, module in model.named_modules():
        linears = {leaf: child for leaf, child in module.named_children() if isinstance(child, nn.Linear)}
        parts = _projections(linears)
        heads = next((getattr(module, n) for n in _HEADS if isinstance(getattr(module, n, None), int)), 0)
        if parts is None or heads < 1:
            continue
        width = linears[parts[2]].out_features // (3 if parts[0] == parts[2] else 1)
        last = [n for n, child in linears.items() if n not in parts and child.in_features == width]
        if len(last) == 1 and width % heads == 0 and not _has_head_norms(module, width // heads):
            prefix = name + "." if name else ""
            found.append(Attention(name, heads, *(prefix + n for n in (*parts, last[0]))))
    return found


def _projections(linears: dict[str, nn.Linear]) -> tuple[str, str, str] | None:
    """Names of the Linear layers for queries, keys and values, which make vectors of one width."""
    fused = next((n for n in _FUSED if n in linears), None)
    if fused is not None:
        return (fused, fused, fused) if linears[fused].out_features % 3 == 0 else None
    query, key, value = (next((n for n in names if n in linears), None) for names in (_QUERY, _KEY, _VALUE))
    if query is None or key is None or value is None:
        return None
    return (query, key, value) if linears[query].out_features == linears[value].out_features else None


def _has_head_norms(module: nn.Module, dimensions: int) -> bool:
    others = [child for child in module.children() if not isinstance(child, nn.Linear)]
    return any(p.dim() == 1 and len(p) == dimensions for child in others for p in child.parameters())


def heads_of(model: nn.Module, attention: Attention, index: int) -> Heads:
    """The weights as a method sees them, (heads, d, n) each."""
    weights = attention_weights(model, attention)
    return Heads(attention.name, index, weights.query, weights.key, weights.value, weights.output)


def attention_weights(model: nn.Module, attention: Attention) -> AttentionWeights:
    """Weights, biases and the factor of the logits, float32."""
    parts = (attention.query, attention.key, attention.value)
    matrices, biases = [_weight(model, name) for name in parts], [_bias(model, name) for name in parts]
    if attention.fused:
        matrices = list(matrices[0].chunk(3))
        biases = [None] * 3 if biases[0] is None else list(biases[0].chunk(3))
    query, key, value = (matrix.reshape(attention.heads, -1, matrix.shape[1]) for matrix in matrices)
    output = _weight(model, attention.output).T.contiguous()
    query_bias, key_bias, value_bias = (b if b is None else b.reshape(attention.heads, -1) for b in biases)
    return AttentionWeights(
        query,
        key,
        value,
        output.view(attention.heads, -1, output.shape[1]),
        _scale(model.get_submodule(attention.name), query.shape[1]),
        query_bias,
        key_bias,
        value_bias,
        _bias(model, attention.output),
    )


def write_attention(model: nn.Module, attention: Attention, weights: AttentionWeights) -> None:
    """Put weights and biases of queries, keys, values, and the weights of the output, back in place."""
    rows: dict[str, list[Tensor]] = {attention.query: [], attention.key: [], attention.value: []}
    biases: dict[str, list[Tensor]] = {name: [] for name in rows}
    found = (weights.query, weights.query_bias), (weights.key, weights.key_bias), (weights.value, weights.value_bias)
    for name, (matrix, bias) in zip((attention.query, attention.key, attention.value), found, strict=True):
        rows[name].append(matrix.flatten(0, 1))
        biases[name] += [] if bias is None else [bias.flatten()]
    with torch.no_grad():
        for name, parts in rows.items():
            model.get_submodule(name).get_parameter("weight").copy_(torch.cat(parts))
            if biases[name]:
                model.get_submodule(name).get_parameter("bias").copy_(torch.cat(biases[name]))
        model.get_submodule(attention.output).get_parameter("weight").copy_(weights.output.flatten(0, 1).T)


def head_masks(model: nn.Module, attention: Attention, choice: HeadChoice) -> dict[str, Tensor]:
    """Masks, True = kept, of the rows of queries, keys and values that go: parameter name -> bool of its shape."""
    masks = {}
    for name, kept in _rows(model, attention, choice).items():
        for leaf, parameter in model.get_submodule(name).named_parameters(recurse=False):
            mask = torch.zeros_like(parameter, dtype=torch.bool)
            mask[kept] = True
            masks[f"{name}.{leaf}"] = mask
    return masks


def output_mask(model: nn.Module, attention: Attention, choice: HeadChoice) -> Tensor:
    """True = kept, of the shape of the output projection's weight, whose inputs go with the values."""
    mask = torch.zeros_like(_weight(model, attention.output), dtype=torch.bool, device="cpu")
    mask[:, _flat(choice.value_output, mask.shape[1])] = True
    return mask


def cut_heads(model: nn.Module, attention: Attention, choice: HeadChoice) -> dict[str, Any]:
    """Make the heads smaller, in place; returns the attributes of the module that changed with them.

    The logits keep the factor of the dense heads. Modules with separate projections hold it as a number. Those with one
    for all three may read it from the width, so there the queries take the difference and the number is the usual one.
    """
    module, output = model.get_submodule(attention.name), model.get_submodule(attention.output)
    width, kept = int(output.in_features), choice.value_output.shape[1]  # type: ignore[arg-type]
    before, changed = width // attention.heads, {}
    if attention.fused:
        changed = _fold(module, model.get_submodule(attention.query), width, before, kept)
    for name, rows in _rows(model, attention, choice).items():
        _slice(model.get_submodule(name), rows, 0)
    _slice(output, _flat(choice.value_output, width), 1)
    new = {before: kept, width: kept * attention.heads}
    changed |= {name: new[size] for name, size in _sizes(module).items() if size in new}
    for key, value in changed.items():
        setattr(module, key, value)
    return changed


def _fold(module: nn.Module, fused: Any, width: int, before: int, after: int) -> dict[str, Any]:
    """Queries times what the factor loses when it becomes `after`^-1/2; the attribute that holds the new factor."""
    usual = after**-0.5
    with torch.no_grad():
        for parameter in fused.parameters():
            parameter[:width] *= _scale(module, before) / usual
    return {name: usual for name in _SCALES if isinstance(getattr(module, name, None), float)}


def _sizes(module: nn.Module) -> dict[str, int]:
    """Numbers of the module that tell the width of one head or of all."""
    named = {name: value for name, value in vars(module).items() if isinstance(value, int)}
    return {n: v for n, v in named.items() if ("head" in n or "attn" in n) and ("dim" in n or "size" in n)}


def _rows(model: nn.Module, attention: Attention, choice: HeadChoice) -> dict[str, Tensor]:
    """Projection -> its rows that stay."""
    width = int(model.get_submodule(attention.output).in_features)  # type: ignore[arg-type]
    query_key, value = _flat(choice.query_key, width), _flat(choice.value_output, width)
    if attention.fused:
        return {attention.query: torch.cat([query_key, width + query_key, 2 * width + value])}
    return {attention.query: query_key, attention.key: query_key, attention.value: value}


def _flat(kept: Tensor, width: int) -> Tensor:
    """(heads, k) dimensions of each head -> positions among all `width` of them."""
    return (torch.arange(len(kept))[:, None] * (width // len(kept)) + kept.cpu()).flatten()


def _scale(module: nn.Module, dimensions: int) -> float:
    held = (getattr(module, name, None) for name in _SCALES)
    return next((value for value in held if isinstance(value, float)), float(dimensions**-0.5))


def _slice(layer: Any, kept: Tensor, axis: int) -> None:
    layer.weight = nn.Parameter(layer.weight.detach().index_select(axis, kept).contiguous())
    if axis == 0 and layer.bias is not None:
        layer.bias = nn.Parameter(layer.bias.detach()[kept].contiguous())
    layer.out_features, layer.in_features = layer.weight.shape


def _weight(model: nn.Module, name: str) -> Tensor:
    weight: Tensor = model.get_submodule(name).weight.detach().float()  # type: ignore[operator]
    return weight


def _bias(model: nn.Module, name: str) -> Tensor | None:
    bias: Tensor | None = model.get_submodule(name).bias  # type: ignore[assignment]
    return None if bias is None else bias.detach().float()
