"""Layers that the graph has and the forward never calls."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import crepe
from image_data import parquet

EXAMPLE = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


class Unused(nn.Module):
    """A head that nothing calls, attention that reads its output projection past its forward, and a batch norm without
    scales."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 32, 3, stride=2)
        self.second = nn.Conv2d(32, 32, 3, bias=False)
        self.norm = nn.BatchNorm2d(32, affine=False)
        self.spare = nn.Linear(32, 64)
        self.attention = nn.MultiheadAttention(32, 2, batch_first=True)
        self.head = nn.Linear(32, 5)

    def forward(self, pixels: Tensor) -> Tensor:
        tokens = self.norm(self.second(self.first(pixels).relu())).flatten(2).mT
        return self.head((tokens + self.attention(tokens, tokens, tokens, need_weights=False)[0]).mean(1))


def _pixels(pictures: list[Any]) -> Tensor:
    torch.manual_seed(len(pictures))
    return torch.randn(len(pictures), 3, 16, 16)


@pytest.mark.parametrize(("method", "refine"), [("bcbp", "compensate"), ("bcbp", "sequential"), ("bcbp-obs", "")])
def test_layers_that_do_not_run_are_neither_scored_nor_fitted(method: str, refine: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, data = Unused(), parquet(tmp_path / "a.parquet", 8)
    spare = model.spare.weight.detach().clone()
    fields = {"refine": refine or None, "calibration": data, "preprocess": _pixels, "example": EXAMPLE}
    result = crepe.prune(model, method=method, sparsity=0.5, **{k: v for k, v in fields.items() if v is not None})
    skipped = {entry["name"]: entry["reason"] for entry in result.skipped}
    if method == "bcbp-obs":
        assert "does not run as a layer" in skipped["spare.weight"]
        assert "does not run as a layer" in skipped["attention.out_proj.weight"]
    kept = model.spare.weight != 0
    assert torch.equal(model.spare.weight[kept], spare[kept]) and result.tensors["second.weight"].zeros > 0
