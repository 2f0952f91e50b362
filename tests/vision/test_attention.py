"""Smaller heads compute what masked heads do, and are saved with what the module has to know."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

import crepe
from crepe.vision.attention import attention_weights, cut_heads, find_attentions, head_masks, heads_of, output_mask
from crepe.vision.cut import distance, hold
from crepe.vision.load import logits_of
from crepe.vision.methods import METHODS, HeadChoice, HeadPart, Heads, Method
from image_data import hugging_face_folder
from image_families import FusedTransformer, hugging_face

EXAMPLE = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def _first_half(heads: Heads, sparsity: float) -> HeadChoice | None:
    count, width, _ = heads.query.shape
    kept = torch.arange(int(width * (1 - sparsity))).expand(count, -1)
    return None if heads.index == 0 else HeadChoice(kept, kept + int(width * sparsity))


@pytest.mark.parametrize("name", ["vit", "deit", "swin"])
def test_smaller_heads_compute_what_masked_ones_do(name: str) -> None:
    smaller, masked = hugging_face(name), hugging_face(name)
    found = find_attentions(smaller)
    assert len(found) == 2 and found[0].heads in (2, 4)
    for index, attention in enumerate(found):
        choice = _first_half(heads_of(smaller, attention, index), 0.5)
        if choice is not None:
            hold(masked, head_masks(smaller, attention, choice))
            assert cut_heads(smaller, attention, choice) == {"head_dim": choice.query_key.shape[1]}
    with torch.no_grad():
        assert distance(logits_of(masked(EXAMPLE)), logits_of(smaller(EXAMPLE))) <= 1e-5


def test_heads_are_laid_out_as_the_module_reads_them() -> None:
    model = hugging_face("vit")
    attention = find_attentions(model)[0]
    heads = heads_of(model, attention, 0)
    assert heads.query.shape == (4, 8, 32) and heads.output.shape == (4, 8, 32)
    assert torch.equal(heads.value[1, 2], model.get_submodule(attention.value).weight[10])
    assert torch.equal(heads.output[1, 2], model.get_submodule(attention.output).weight[:, 10])


def test_a_folder_with_smaller_heads_is_loaded_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    METHODS.names()
    monkeypatch.setitem(METHODS._entries, "first-half", Method((HeadPart(_first_half),)))
    folder = hugging_face_folder(tmp_path / "vit", "vit")
    for kind in ("dense", "sliced"):
        result = crepe.prune(folder, tmp_path / kind, method="first-half", sparsity=0.5, format=kind)
        assert result.sparsity == 0.5 and len(result.tensors) == (3 if kind == "dense" else 4)  # and the columns
    (dense, _), (sliced, _) = (crepe.load(str(tmp_path / kind)) for kind in ("dense", "sliced"))
    assert sliced.vit.layers[1].attention.head_dim == 4 and sliced.vit.layers[0].attention.head_dim == 8
    with torch.no_grad():
        assert distance(dense(EXAMPLE).logits, sliced(EXAMPLE).logits) <= 1e-5


@pytest.mark.parametrize("fused", [True, False])
def test_one_linear_for_queries_keys_and_values_is_cut_like_three(fused: bool) -> None:
    """Whether the module takes the factor of its logits from the width or from a number."""
    torch.manual_seed(0)
    smaller = FusedTransformer(fused).eval()
    masked = copy.deepcopy(smaller)
    for index, attention in enumerate(find_attentions(smaller)):
        choice = _first_half(heads_of(smaller, attention, index), 0.5)
        if choice is not None:
            hold(masked, head_masks(smaller, attention, choice))
            assert cut_heads(smaller, attention, choice) == {"scale": 0.25, "head_dim": 16, "attn_dim": 32}
            assert smaller.get_submodule(attention.query).weight.shape == (96, 64)
    with torch.no_grad():
        dense = FusedTransformer(fused).eval()(EXAMPLE)
        assert distance(masked(EXAMPLE), smaller(EXAMPLE)) <= 1e-5 < distance(dense, smaller(EXAMPLE))


def test_one_linear_is_read_as_queries_then_keys_then_values() -> None:
    model = FusedTransformer()
    attention = find_attentions(model)[1]
    weights, matrix = attention_weights(model, attention), model.blocks[1].attn.qkv.weight
    assert attention.fused and weights.scale == 32**-0.5
    for part, start in ((weights.query, 0), (weights.key, 64), (weights.value, 128)):
        assert torch.equal(part[1, 3], matrix[start + 35])
    assert torch.equal(weights.value_bias[1], model.blocks[1].attn.qkv.bias[160:])


def test_norms_over_the_dimensions_of_a_head_keep_an_attention_dense() -> None:
    model = FusedTransformer()
    model.blocks[1].attn.q_norm = torch.nn.LayerNorm(32)
    assert [found.name for found in find_attentions(model)] == ["blocks.0.attn", "blocks.2.attn"]


def test_the_output_projection_loses_what_the_values_lose() -> None:
    model = FusedTransformer()
    attention = find_attentions(model)[0]
    kept = torch.tensor([[0, 1], [2, 3]])
    mask = output_mask(model, attention, HeadChoice(kept, kept))
    assert mask.shape == (64, 64) and mask.all(0).nonzero().flatten().tolist() == [0, 1, 34, 35]
    assert int(mask.sum()) == 4 * 64
