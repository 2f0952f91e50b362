"""Packed models on a GPU, from pruning to text: what a user does, with the kernels underneath."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import crepe
from crepe.checkpoint.modules import PackedLinear
from crepe.checkpoint.read import load_model
from gpu import needs_gpu


def _model(device: str) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=128, hidden_size=256, intermediate_size=512, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=1024,
    )  # fmt: skip
    return LlamaForCausalLM(config).to(torch.bfloat16).to(device).eval()


def _packed(folder: Path, pattern: str, device: str) -> tuple[Any, Any]:
    """(the pruned model, the same model read from its packed file)"""
    model = _model(device)
    rows = torch.randint(128, (4, 64), generator=torch.Generator().manual_seed(1))
    crepe.prune(model, folder / "packed", pattern=pattern, method="wanda", format="packed", rows=rows)
    return model, load_model(str(folder / "packed"), device=device)


def _close(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Products in another order, rounded to bfloat16 after each layer."""
    error = float((found.float() - expected.float()).norm() / expected.float().norm())
    assert error < 2e-2


@needs_gpu
@torch.no_grad()
@pytest.mark.parametrize("pattern", ["2:4", "colblock:64x8"])
def test_prune_read_and_generate(tmp_path: Path, pattern: str) -> None:
    model, packed = _packed(tmp_path, pattern, "cuda")
    assert sum(isinstance(module, PackedLinear) for module in packed.modules()) == 14
    for tokens in (1, 7, 200, 600):
        prompt = torch.randint(128, (1, tokens), generator=torch.Generator().manual_seed(tokens)).cuda()
        _close(packed(prompt).logits, model(prompt).logits)
    assert packed.generate(prompt, max_new_tokens=8, min_new_tokens=8, do_sample=False).shape == (1, 608)
