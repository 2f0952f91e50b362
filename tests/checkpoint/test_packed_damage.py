"""Packed files that are damaged, do not fit or come from the future: an error before any weight is used."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.utils import logging as theirs

import crepe
from conftest import save_tokenizer
from crepe.errors import CrepeError
from families import tiny_model

Q = "model.layers.0.self_attn.q_proj.weight"


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """One packed checkpoint for each pattern, made once."""
    from conftest import TEXT

    place = tmp_path_factory.mktemp("packed")
    (place / "text.txt").write_text(TEXT)

    def make(pattern: str) -> Path:
        output = place / pattern.replace(":", "-")
        if not output.exists():
            fields = {"calibration": str(place / "text.txt"), "samples": 4, "seqlen": 16, "pattern": pattern}
            crepe.prune(tiny_model("llama"), output, tokenizer=save_tokenizer(place), format="packed", **fields)
        return output

    return make


def _fails(folder: Path, match: str) -> None:
    """Plain transformers and crepe.load refuse alike."""
    from transformers import AutoModelForCausalLM

    with pytest.raises(CrepeError, match=match):
        AutoModelForCausalLM.from_pretrained(folder)
    with pytest.raises(CrepeError, match=match):
        crepe.load(str(folder))


def _copy(folder: Path, target: Path, change: Callable[[dict[str, torch.Tensor]], Any] = lambda tensors: None) -> Path:
    """The checkpoint with its tensors changed."""
    shutil.copytree(folder, target)
    tensors = load_file(target / "model.safetensors")
    change(tensors)
    save_file(tensors, target / "model.safetensors", {"format": "pt"})
    return target


def _edit(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


def test_a_file_that_is_cut_short(packed: Callable[[str], Path], tmp_path: Path) -> None:
    folder = _copy(packed("2:4"), tmp_path / "out")
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    _fails(folder, "truncated or corrupt")


def test_codes_that_no_pattern_allows(packed: Callable[[str], Path], tmp_path: Path) -> None:
    folder = _copy(packed("2:4"), tmp_path / "out", lambda tensors: tensors[f"{Q}_meta"][3].zero_())
    _fails(folder, f"{Q}.*8 codes are no pair of positions")


def test_blocks_that_lie_outside(packed: Callable[[str], Path], tmp_path: Path) -> None:
    folder = _copy(packed("colblock:8x8"), tmp_path / "out", lambda tensors: tensors[f"{Q}_blocks"].add_(7))
    _fails(folder, f"{Q}.*blocks must rise within")


def test_bits_that_do_not_fit_the_values(packed: Callable[[str], Path], tmp_path: Path) -> None:
    folder = _copy(packed("unstructured"), tmp_path / "out", lambda tensors: tensors[f"{Q}_bits"][0].fill_(0))
    _fails(folder, f"{Q}.*the bits keep")


def test_a_tensor_that_is_missing(packed: Callable[[str], Path], tmp_path: Path) -> None:
    folder = _copy(packed("2:4"), tmp_path / "out", lambda tensors: tensors.pop(f"{Q}_meta"))
    _fails(folder, f"lacks '{Q}_meta'")


def test_a_tensor_of_another_shape_or_dtype(packed: Callable[[str], Path], tmp_path: Path) -> None:
    def narrow(tensors: dict[str, torch.Tensor]) -> None:
        tensors[Q] = tensors[Q][:, :-1].contiguous()

    def wide(tensors: dict[str, torch.Tensor]) -> None:
        tensors[f"{Q}_meta"] = tensors[f"{Q}_meta"].long()

    def whole(tensors: dict[str, torch.Tensor]) -> None:
        tensors[Q] = tensors[Q].int()

    _fails(_copy(packed("2:4"), tmp_path / "narrow", narrow), r"is \(32, 15\) of F32.*wants \(32, 16\)")
    _fails(_copy(packed("2:4"), tmp_path / "whole", whole), "of I32.*wants .* of BF16 or F16 or F32")
    _fails(_copy(packed("2:4"), tmp_path / "wide", wide), "of I64.*wants .* of I32")


def test_shapes_that_do_not_match_the_config(packed: Callable[[str], Path], tmp_path: Path) -> None:
    folder = _copy(packed("2:4"), tmp_path / "out")
    _edit(folder, lambda config: config.update(intermediate_size=96))
    _fails(folder, r"packed from shape \(32, 64\), the model of config.json wants \(32, 96\)")


def test_a_tensor_that_the_model_does_not_have(packed: Callable[[str], Path], tmp_path: Path) -> None:
    folder = _copy(packed("2:4"), tmp_path / "out")
    _edit(folder, lambda config: config.update(num_hidden_layers=1))
    _fails(folder, r"'model.layers.1.*that the model does not have")


def test_the_suffixes_are_those_of_the_layouts() -> None:
    from crepe.checkpoint.layouts import SUFFIXES, Bitmap, Blocks, TwoOfFour

    layouts = (
        TwoOfFour((8, 32), ordered=True),
        Blocks((8, 32), pattern="colblock:8x8", kept=2),
        Bitmap((8, 32), kept=3),
    )
    assert set(SUFFIXES) == {suffix for layout in layouts for suffix in layout.suffixes if suffix}


def test_parts_that_the_description_does_not_know(packed: Callable[[str], Path], tmp_path: Path) -> None:
    """Without its order, a weight would be another one."""

    def add(tensors: dict[str, torch.Tensor]) -> None:
        tensors[f"{Q}_order"] = torch.arange(32, dtype=torch.int32)

    _fails(_copy(packed("2:4"), tmp_path / "out", add), f"the file has '{Q}_order', of which layout 2:4")


@pytest.mark.parametrize("version", [None, 0, -3, True, "1"])
def test_a_version_that_is_none(packed: Callable[[str], Path], tmp_path: Path, version: Any) -> None:
    folder = _copy(packed("2:4"), tmp_path / "out")
    _edit(folder, lambda config: config["quantization_config"].update(version=version))
    _fails(folder, f"has version {version!r} of crepe's format")


@pytest.mark.parametrize(
    ("level", "propagate"), [(logging.ERROR, False), (logging.WARNING, False), (logging.WARNING, True)]
)
def test_a_tensor_that_the_description_leaves_out_is_named(
    packed: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    level: int,
    propagate: bool,
) -> None:
    library = theirs.get_logger("transformers")  # sets it up, which the first of all tests to ask would do else
    monkeypatch.setattr(library, "level", level)
    monkeypatch.setattr(library, "propagate", propagate)  # as transformers sets it where the environment says CI
    before = list(library.handlers)
    folder = _copy(packed("2:4"), tmp_path / "out")
    _edit(folder, lambda config: config["quantization_config"]["tensors"].pop(Q))
    with pytest.raises(CrepeError, match=f"{Q}: .*size mismatch"):
        crepe.load(str(folder))
    assert (library.level, library.handlers) == (level, before)
    assert not [record for record in caplog.records if record.name.startswith("transformers")]
    assert not any(handler.filters for handler in before)


def test_a_newer_version_of_the_format(packed: Callable[[str], Path], tmp_path: Path) -> None:
    folder = _copy(packed("2:4"), tmp_path / "out")
    _edit(folder, lambda config: config["quantization_config"].update(version=99))
    _fails(folder, "has version 99 of crepe's format.*pip install -U crepe-prune")


@pytest.mark.parametrize(
    ("entry", "match"),
    [
        ({"layout": "3:5", "shape": [32, 32]}, "unknown layout '3:5'"),
        ({"layout": "2:4", "shape": [32, 32], "colour": 1}, "wrongly.*colour"),
        ({"layout": "2:4"}, "wrongly.*shape"),
        ({"layout": ["2:4"], "shape": [32, 32]}, "unknown layout"),
        ("2:4", "expected an object with its layout"),
        ({"layout": "bitmap", "shape": [32, 32], "kept": "6"}, "kept is a number"),
        ({"layout": "bitmap", "shape": [32, 32], "kept": 6.0}, "kept is a number"),
        ({"layout": "2:4", "shape": [32]}, "at least two sizes"),
        ({"layout": "2:4", "shape": [32, 32], "transposed": None}, "are true or false"),
        ({"layout": "2:4", "shape": [-32, 32]}, "at least two sizes"),
        ({"layout": "2:4", "shape": [32, 32], "transposed": True}, "says that .* is transposed"),
        ({"layout": "colblock", "shape": [32, 32], "pattern": "2:4", "kept": 2}, "no colblock:RxC"),
    ],
)
def test_a_description_that_makes_no_sense(
    packed: Callable[[str], Path], tmp_path: Path, entry: Any, match: str
) -> None:
    folder = _copy(packed("2:4"), tmp_path / "out")
    _edit(folder, lambda config: config["quantization_config"]["tensors"].update({Q: entry}))
    _fails(folder, match)


def test_tensors_that_are_no_object(packed: Callable[[str], Path], tmp_path: Path) -> None:
    folder = _copy(packed("2:4"), tmp_path / "out")
    _edit(folder, lambda config: config["quantization_config"].update(tensors=[Q]))
    _fails(folder, "lists packed tensors as .*expected an object by name")


def test_an_unknown_format(packed: Callable[[str], Path], tmp_path: Path) -> None:
    folder = _copy(packed("2:4"), tmp_path / "out")
    _edit(folder, lambda config: config["quantization_config"].update(format="folded"))
    _fails(folder, "unknown format 'folded'")


def test_an_order_that_names_a_column_twice() -> None:
    from crepe.checkpoint.layouts import TwoOfFour
    from crepe.kernels.reference import sp24
    from crepe.masks import NofM

    weight = torch.randn(4, 32)
    kept = NofM(2, 4).select(weight.abs(), 0.5)
    values, meta = sp24.pack(weight * kept, kept)
    tensors = {"": values, "_meta": meta, "_order": torch.zeros(32, dtype=torch.int32)}
    with pytest.raises(CrepeError, match="names a column twice"):
        TwoOfFour((4, 32), ordered=True).check(tensors)
