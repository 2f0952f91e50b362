"""Old sparse checkpoints of compressed-tensors."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy
import pytest
import torch
from safetensors.torch import load_file, save_file

import crepe
from conftest import fails
from crepe.checkpoint.bitmask import read_bitmask
from crepe.cli.main import main
from crepe.errors import CrepeError


def _old(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What compressed-tensors stored, by its own description: numpy.packbits along the rows, lowest bit first."""
    stored = {}
    for name, tensor in tensors.items():
        if "proj" not in name:
            stored[name] = tensor
            continue
        base, kept = name.removesuffix(".weight"), tensor != 0
        stored[f"{base}.compressed"] = tensor[kept].reshape(len(tensor), -1)
        stored[f"{base}.bitmask"] = torch.from_numpy(numpy.packbits(kept.numpy(), axis=-1, bitorder="little"))
        stored[f"{base}.shape"] = torch.tensor([[tensor.shape[0]], [tensor.shape[1]]])
    return stored


@pytest.fixture
def old(tiny_folder: Callable[..., str], text_file: str, tmp_path: Path) -> Path:
    fields = {"calibration": text_file, "samples": 4, "seqlen": 16, "pattern": "2:4"}
    crepe.prune(tiny_folder(), tmp_path / "dense", **fields)
    folder = tmp_path / "old"
    crepe.prune(tiny_folder(), folder, **fields)
    save_file(_old(load_file(folder / "model.safetensors")), folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    sparsity = {"format": "sparse-24-bitmask", "sparsity_structure": "2:4", "targets": ["Linear"], "ignore": []}
    config["quantization_config"] = {"quant_method": "compressed-tensors", "sparsity_config": sparsity}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_crepe_loads_and_converts_it(old: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, dense = (crepe.load(str(tmp_path / name))[0].state_dict() for name in ("old", "dense"))
    assert model.keys() == dense.keys() and all(torch.equal(model[name], dense[name]) for name in dense)
    assert main(["convert", str(old), str(tmp_path / "new"), "--format", "dense"]) == 0
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("new", "dense"))
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    assert "crepe convert" in fails(capsys, 1, "prune", "--model", str(old), "--output", str(tmp_path / "x"))


def test_columns_need_not_fill_the_last_byte(tmp_path: Path) -> None:
    weight = torch.randn(5, 12) * (torch.arange(12) % 2)
    save_file(_old({"a.proj.weight": weight}), tmp_path / "model.safetensors")
    assert torch.equal(read_bitmask(tmp_path)["a.proj.weight"], weight)


def test_damage_is_named(tmp_path: Path) -> None:
    stored = _old({"a.proj.weight": torch.randn(5, 16) * (torch.arange(16) % 2)})
    save_file({**stored, "a.proj.bitmask": stored["a.proj.bitmask"] | 1}, tmp_path / "model.safetensors")
    with pytest.raises(CrepeError, match=r"'a.proj' has 40 values for 50 bits"):
        read_bitmask(tmp_path)
    del stored["a.proj.shape"]
    save_file(stored, tmp_path / "model.safetensors")
    with pytest.raises(CrepeError, match=r"lacks 'a.proj.shape'"):
        read_bitmask(tmp_path)
