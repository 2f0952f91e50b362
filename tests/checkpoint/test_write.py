"""Joining files, publishing, card and report."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import crepe
from crepe.checkpoint import write
from crepe.checkpoint.card import command
from crepe.cli.main import build_parser
from crepe.errors import CrepeError


def test_concatenate_keeps_every_tensor(tmp_path: Path) -> None:
    parts = []
    wanted = {}
    for i, dtype in enumerate((torch.float32, torch.bfloat16, torch.int64)):
        tensors = {f"{i}.{j}": torch.arange(5 + j).to(dtype) for j in range(3)}
        wanted |= tensors
        parts.append(tmp_path / f"{i}.safetensors")
        save_file(tensors, parts[-1])
    write.concatenate(parts, tmp_path / "all.safetensors")
    found = load_file(tmp_path / "all.safetensors")
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[n], t) and found[n].dtype == t.dtype for n, t in wanted.items())


def test_a_large_model_keeps_a_file_per_block(
    tiny_folder: Callable[..., str], text_file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoModelForCausalLM

    folder = tiny_folder()
    fields = {"calibration": text_file, "samples": 4, "seqlen": 16}
    crepe.prune(folder, tmp_path / "one", **fields)
    monkeypatch.setattr(write, "ONE_FILE", 1)
    monkeypatch.setattr(write, "_ALONE", 1000)
    crepe.prune(folder, tmp_path / "many", **fields)
    names = sorted(p.name for p in (tmp_path / "many").glob("*.safetensors"))
    assert names[0] == f"model-00001-of-{len(names):05d}.safetensors" and len(names) > 4
    models = [AutoModelForCausalLM.from_pretrained(tmp_path / n).state_dict() for n in ("one", "many")]
    assert all(torch.equal(models[0][n], models[1][n]) for n in models[0])


def test_the_dtype_is_kept_and_can_be_changed(tiny_folder: Callable[..., str], text_file: str, tmp_path: Path) -> None:
    folder = tiny_folder()
    for dtype, wanted in (("auto", torch.float32), ("bfloat16", torch.bfloat16)):
        crepe.prune(folder, tmp_path / dtype, calibration=text_file, samples=4, seqlen=16, dtype=dtype)
        tensors = load_file(tmp_path / dtype / "model.safetensors")
        assert {t.dtype for t in tensors.values()} == {wanted}
        assert json.loads((tmp_path / dtype / "config.json").read_text())["dtype"] == str(wanted).split(".")[1]


def test_what_was_there_stays_where_the_new_folder_cannot_take_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    final, output = tmp_path / "work" / "final", tmp_path / "out"
    for folder in (final, output):
        folder.mkdir(parents=True)
        (folder / "name").write_text(folder.name)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(write.os, "rename", full)
        with pytest.raises(OSError, match="No space left"):
            write.publish(final, output, overwrite=True)
    assert (output / "name").read_text() == "out" and (final / "name").read_text() == "final"
    write.publish(final, output, overwrite=True)
    assert (output / "name").read_text() == "final" and sorted(p.name for p in tmp_path.iterdir()) == ["out"]


def test_no_negative_zero_is_stored(tiny_folder: Callable[..., str], text_file: str, tmp_path: Path) -> None:
    result = crepe.prune(tiny_folder(), tmp_path / "out", calibration=text_file, samples=4, seqlen=16)
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    for name in result.tensors:
        assert not (torch.signbit(tensors[name]) & (tensors[name] == 0)).any()


def test_card_and_report(tiny_folder: Callable[..., str], text_file: str, tmp_path: Path) -> None:
    folder, output = tiny_folder(), tmp_path / "out"
    crepe.prune(folder, output, calibration=text_file, samples=4, seqlen=16, pattern="2:4", seed=3)
    card = (output / "README.md").read_text()
    for words in ("as large and as fast as", "Not measured yet", "--pattern 2:4", "--seed 3", "- pruned", "50.00%"):
        assert words in card, words
    crepe.evaluate(str(output), data=text_file, seqlen=32, max_windows=3, reference=folder, save=True)
    card, report = (output / "README.md").read_text(), (output / "report.html").read_text()
    assert "Not measured yet" not in card and "KL divergence" in card and "token perplexity" in card
    assert "<svg" in report and "KL divergence" in report and "http-equiv" not in report
    for file in ("README.md", "report.html", "evaluation.json"):
        assert str(tmp_path) not in (output / file).read_text(), file
    assert "src=" not in report and "<link" not in report  # self-contained


def test_the_command_in_the_card_parses(tiny_folder: Callable[..., str], text_file: str, tmp_path: Path) -> None:
    fields = {"pattern": "2:4", "exclude": "*q_proj*,*k_proj*", "save_masks": True, "batch_size": 3}
    crepe.prune(tiny_folder(), tmp_path / "out", calibration=text_file, samples=4, seqlen=16, **fields)
    recipe = json.loads((tmp_path / "out" / "crepe.json").read_text())["recipe"]
    given = build_parser().parse_args(shlex.split(command(recipe))[1:])
    assert given.exclude == "*q_proj*,*k_proj*" and given.batch_size == 3 and given.pattern == "2:4"


def test_report_needs_an_output_folder(tmp_path: Path) -> None:
    from crepe.report.folder import write_report

    with pytest.raises(CrepeError, match=r"no output of crepe prune"):
        write_report(tmp_path)
