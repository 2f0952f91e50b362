"""Smaller heads compute what masked heads do, and are saved with what the module has to know."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import crepe
from crepe.vision.attention import cut_heads, find_attentions, head_masks, heads_of
from crepe.vision.cut import distance, hold
from crepe.vision.load import logits_of
from crepe.vision.methods import METHODS, HeadChoice, HeadPart, Heads, Method
from image_data import hugging_face_folder
from image_families import hugging_face

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
        assert result.sparsity == 0.5 and len(result.tensors) == 3
    (dense, _), (sliced, _) = (crepe.load(str(tmp_path / kind)) for kind in ("dense", "sliced"))
    assert sliced.vit.layers[1].attention.head_dim == 4 and sliced.vit.layers[0].attention.head_dim == 8
    with torch.no_grad():
        assert distance(dense(EXAMPLE).logits, sliced(EXAMPLE).logits) <= 1e-5
