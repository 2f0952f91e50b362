"""Turned heads: the same network until dimensions go, and closer to it afterwards than a choice of coordinates."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import crepe
from crepe.vision.attention import find_attentions
from crepe.vision.turn import turn_heads
from image_data import STEPS, parquet, picture
from image_families import FusedTransformer, hugging_face

VALUES = STEPS([picture(i) for i in range(12)])
BATCHES = [(VALUES, torch.zeros(12))]


@pytest.mark.parametrize("fused", [True, False])
def test_turning_changes_weights_and_nothing_else(fused: bool) -> None:
    torch.manual_seed(0)
    model = FusedTransformer().eval() if fused else hugging_face("vit")
    name = find_attentions(model)[1].query
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with torch.no_grad():
        dense = model(VALUES)
        turn_heads(model, find_attentions(model)[1:], BATCHES, VALUES)
        found = model(VALUES)
    dense, found = (x if fused else x.logits for x in (dense, found))
    torch.testing.assert_close(found, dense, rtol=1e-3, atol=1e-3)
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert f"{name}.weight" in changed and not any(".0." in key for key in changed)


class _Ramp(nn.Module):
    """Stands for positions that are put into queries and keys: it treats the dimensions of a head differently."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.linspace(0.1, 2.0, x.shape[-1]) ** 3


def test_heads_whose_dimensions_are_tied_are_refused() -> None:
    torch.manual_seed(0)
    model = FusedTransformer().eval()
    model.blocks[1].attn.qkv = nn.Linear(64, 192)
    model.blocks[1].attn.qkv.register_forward_hook(lambda module, inputs, output: _Ramp()(output))
    with pytest.raises(crepe.CrepeError, match=r"the heads of blocks\.1\.attn, \.\.\. cannot be turned"):
        turn_heads(model, find_attentions(model)[1:2], BATCHES, VALUES)


def test_the_rotated_method_is_closer_to_the_dense_network(tmp_path: Path) -> None:
    errors = []
    for method in ("toast", "toast-rotated"):
        torch.manual_seed(0)
        model = FusedTransformer().eval()
        for block in model.blocks:
            block.attn.qkv.weight.data *= 4
        with torch.no_grad():
            dense = model(VALUES)
            crepe.prune(
                model,
                example=VALUES[:2],
                method=method,
                sparsity=0.5,
                exclude="*.fc1",
                calibration=parquet(tmp_path / "a.parquet", 12),
                preprocess=STEPS,
            )
            assert model.blocks[1].attn.head_dim == 16
            errors.append(float((model(VALUES) - dense).norm()))
    assert errors[1] < errors[0]
