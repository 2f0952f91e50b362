"""Runs from folder to folder: determinism, resume after a kill, refusal, global comparison, memory retry."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import crepe
from crepe.errors import CrepeError, UsageError
from crepe.pipeline.journal import work_folder
from families import tiny_model
from runs import Killed, assert_resume_gives_the_same_bytes, files_of, kill_after, prune_named


@pytest.mark.parametrize(
    "fields", [{}, {"pipeline": "sequential", "pattern": "2:4"}, {"compare": "global"}, {"save_masks": True}]
)
@pytest.mark.parametrize("model_type", ["llama", "qwen3_moe"])
def test_resume_gives_the_same_bytes(
    fields: dict[str, Any], model_type: str, tiny_folder: Callable[..., str], text_file: str, tmp_path: Path
) -> None:
    assert_resume_gives_the_same_bytes(tiny_folder(model_type), text_file, tmp_path, **fields)


def test_sequential_differs_from_one_pass(tiny_folder: Callable[..., str], text_file: str, tmp_path: Path) -> None:
    folder = tiny_folder()
    for pipeline in ("one-pass", "sequential"):
        prune_named(folder, tmp_path / pipeline, text_file, pipeline=pipeline, sparsity=0.8)
    weights = [files_of(tmp_path / p)["model.safetensors"] for p in ("one-pass", "sequential")]
    assert weights[0] != weights[1]


def test_a_torn_journal_line_and_a_torn_file_are_done_again(
    tiny_folder: Callable[..., str], text_file: str, tmp_path: Path
) -> None:
    folder, output = tiny_folder(), tmp_path / "resumed"
    prune_named(folder, tmp_path / "whole", text_file)
    for damage in ("line", "file"):
        with pytest.MonkeyPatch.context() as patch:
            kill_after(patch, 2)
            with pytest.raises(Killed):
                prune_named(folder, output, text_file)
        work = work_folder(output)
        if damage == "line":
            journal = work / "journal.jsonl"
            journal.write_bytes(journal.read_bytes()[:-20])
        else:
            (work / "block-00001.safetensors").write_bytes(b"torn")
        prune_named(folder, output, text_file, resume=True)
        assert files_of(output) == files_of(tmp_path / "whole")
        __import__("shutil").rmtree(output)


def test_resume_refuses_what_changed(tiny_folder: Callable[..., str], text_file: str, tmp_path: Path) -> None:
    folder, output = tiny_folder(), tmp_path / "out"
    with pytest.MonkeyPatch.context() as patch:
        kill_after(patch, 1)
        with pytest.raises(Killed):
            prune_named(folder, output, text_file)
    with pytest.raises(UsageError, match=r"recipe.sparsity was None and is now 0.6"):
        prune_named(folder, output, text_file, resume=True, sparsity=0.6)
    with pytest.raises(CrepeError, match="holds an unfinished run: --resume"):
        prune_named(folder, output, text_file)
    Path(text_file).write_text(Path(text_file).read_text() + " more")
    with pytest.raises(UsageError, match=r"file\.calibration was"):
        prune_named(folder, output, text_file, resume=True)
    tiny_model("llama", seed=1).save_pretrained(folder)
    Path(text_file).write_text(Path(text_file).read_text().removesuffix(" more"))
    with pytest.raises(UsageError, match="model was"):
        prune_named(folder, output, text_file, resume=True)
    prune_named(folder, output, text_file, overwrite=True)


def test_an_output_that_exists(tiny_folder: Callable[..., str], text_file: str, tmp_path: Path) -> None:
    folder, output = tiny_folder(), tmp_path / "out"
    prune_named(folder, output, text_file)
    before = files_of(output)
    with pytest.raises(CrepeError, match=r"out exists: .*--overwrite"):
        prune_named(folder, output, text_file)
    assert prune_named(folder, output, text_file, resume=True).sparsity == 0.5
    assert files_of(output) == before
    with pytest.raises(UsageError, match=r"recipe.pattern was 'unstructured'"):
        prune_named(folder, output, text_file, resume=True, pattern="2:4")
    prune_named(folder, output, text_file, overwrite=True, pattern="2:4")
    assert json.loads((output / "crepe.json").read_text())["recipe"]["pattern"] == "2:4"


@pytest.mark.parametrize("round_number", range(3))
def test_kill_at_any_moment(round_number: int, tiny_folder: Callable[..., str], text_file: str, tmp_path: Path) -> None:
    """The process itself is killed, at a random moment of its life, until it comes through."""
    folder = tiny_folder()
    prune_named(folder, tmp_path / "whole", text_file)
    command = [sys.executable, "-m", "crepe", "prune", "--model", folder, "--output", str(tmp_path / "killed")]
    command += ["--calibration", text_file, "--samples", "6", "--seqlen", "24", "--batch-size", "2", "--resume"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE)
    time.sleep(random.Random(round_number).uniform(2, 7))
    process.kill()
    process.communicate()
    subprocess.run(command, check=True, capture_output=True)
    assert files_of(tmp_path / "killed") == files_of(tmp_path / "whole")


def test_global_comparison_is_exact(tiny_folder: Callable[..., str], text_file: str, tmp_path: Path) -> None:
    result = prune_named(
        tiny_folder(), tmp_path / "out", text_file, compare="global", sparsity=0.37, method="magnitude"
    )
    total = sum(r.total for r in result.tensors.values())
    assert sum(r.zeros for r in result.tensors.values()) == int(total * 0.37 + 0.5)
    weights = torch.cat([v.reshape(-1) for n, v in _weights(tmp_path / "out").items() if n in result.tensors])
    dense = torch.cat([v.reshape(-1) for n, v in _weights(Path(tiny_folder())).items() if n in result.tensors])
    assert dense[weights == 0].abs().max() <= dense[weights != 0].abs().min()


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def test_row_comparison_and_masks(tiny_folder: Callable[..., str], text_file: str, tmp_path: Path) -> None:
    from crepe.masks import MaskSet

    prune_named(tiny_folder(), tmp_path / "out", text_file, method="wanda", save_masks=True)
    masks, weights = MaskSet.load(tmp_path / "out" / "masks.safetensors"), _weights(tmp_path / "out")
    masks.check()
    for name, mask in masks.items():
        assert torch.equal(mask.kept, weights[name] != 0)
        assert len(set((~mask.kept).sum(1).tolist())) == 1


def test_include_and_exclude(tiny_folder: Callable[..., str], text_file: str, tmp_path: Path) -> None:
    folder = tiny_folder("mixtral")
    result = prune_named(folder, tmp_path / "out", text_file, exclude="*.q_proj.*,*experts*")
    names = set(result.tensors)
    assert not any("q_proj" in n or "experts" in n for n in names) and any("k_proj" in n for n in names)
    reasons = {s["name"]: s["reason"] for s in result.skipped}
    assert reasons["model.layers.0.self_attn.q_proj.weight"] == "excluded by --exclude"
    with pytest.raises(UsageError, match=r"--exclude '\*nothing\*' matches no parameter"):
        prune_named(folder, tmp_path / "out2", text_file, exclude="*nothing*")


def test_what_stays_dense_can_be_asked_for(tiny_folder: Callable[..., str], text_file: str, tmp_path: Path) -> None:
    folder = tiny_folder("mixtral")
    dense = prune_named(folder, tmp_path / "dense", text_file)
    assert not any("gate.weight" in n or "lm_head" in n or "embed" in n for n in dense.tensors)
    routers = prune_named(folder, tmp_path / "routers", text_file, include="*.gate.weight")
    assert sum(n.endswith("gate.weight") for n in routers.tensors) == 3 and not routers.notes
    assert all(r.tokens for n, r in routers.tensors.items() if n.endswith("gate.weight"))
    everything = prune_named(folder, tmp_path / "all", text_file, include="lm_head*,*embed_tokens*")
    assert {"lm_head.weight", "model.embed_tokens.weight"} <= set(everything.tensors)
    assert everything.tensors["lm_head.weight"].tokens == 6 * 24 and "one full forward" in everything.notes[0]
    assert everything.sparsity == 0.5


def test_memory_that_does_not_suffice_makes_the_batch_smaller() -> None:
    from crepe.pipeline import run

    sizes = []
    original = run.Runner.prune

    def prune(self: Any, rows: Any, batch_size: int) -> Any:
        sizes.append(batch_size)
        if batch_size > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return original(self, rows, batch_size)

    model, rows = tiny_model("llama"), torch.randint(3, 128, (8, 16))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run.Runner, "prune", prune)
        crepe.prune(model, rows=rows, batch_size=8)
    assert sizes[0] == 8 and sizes[-1] == 2 and sizes == sorted(sizes, reverse=True)


def _fail_at_block(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """The first time this block is reached memory does not suffice."""
    from crepe.pipeline import run

    original, failed = run.Runner._collect, []

    def collect(self: Any, index: int, block: Any, walk: Any) -> Any:
        if block.name == name and not failed:
            failed.append(name)
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return original(self, index, block, walk)

    monkeypatch.setattr(run.Runner, "_collect", collect)


def test_memory_that_ends_in_the_middle(
    tiny_folder: Callable[..., str], text_file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny_folder()
    prune_named(folder, tmp_path / "whole", text_file, batch_size=1)
    _fail_at_block(monkeypatch, "model.layers.1")
    prune_named(folder, tmp_path / "again", text_file, batch_size=2)
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "again")]
    assert weights[0] == weights[1]
    _fail_at_block(monkeypatch, "model.layers.1")
    with pytest.raises(CrepeError, match=r"memory does not suffice for --batch-size 8.*smaller"):
        crepe.prune(tiny_model("llama"), rows=torch.randint(3, 128, (8, 16)))


def test_folders_that_are_not_ours_are_left_alone(
    tiny_folder: Callable[..., str], text_file: str, tmp_path: Path
) -> None:
    folder = tiny_folder()
    for output in (folder, str(tmp_path)):
        with pytest.raises(UsageError, match="holds the model itself"):
            prune_named(folder, Path(output), text_file, overwrite=True)
    for name in ("out.old", "out2.partial", "foreign"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine.txt").write_text("mine")
    prune_named(folder, tmp_path / "out", text_file)
    with pytest.raises(CrepeError, match="no unfinished run of crepe"):
        prune_named(folder, tmp_path / "out2", text_file, overwrite=True)
    with pytest.raises(UsageError, match="is no output of crepe"):
        prune_named(folder, tmp_path / "foreign", text_file, overwrite=True)
    assert all((tmp_path / name / "mine.txt").is_file() for name in ("out.old", "out2.partial", "foreign"))
    assert (Path(folder) / "model.safetensors").is_file()


@pytest.mark.parametrize("moment", ["recording", "publishing"])
def test_a_killed_overwrite_goes_on_with_resume_alone(
    moment: str, tiny_folder: Callable[..., str], text_file: str, tmp_path: Path
) -> None:
    folder, output = tiny_folder(), tmp_path / "out"
    prune_named(folder, tmp_path / "whole", text_file, pattern="2:4")
    prune_named(folder, output, text_file)
    with pytest.MonkeyPatch.context() as patch:
        if moment == "recording":
            kill_after(patch, 1)
        else:
            patch.setattr("crepe.checkpoint.write.os.rename", _raise_killed)
        with pytest.raises(Killed):
            prune_named(folder, output, text_file, pattern="2:4", overwrite=True)
    prune_named(folder, output, text_file, pattern="2:4", resume=True)
    assert files_of(output) == files_of(tmp_path / "whole")


def _raise_killed(*args: Any) -> None:
    raise Killed


def test_masks_of_blocks_that_are_left_out(tiny_folder: Callable[..., str], text_file: str, tmp_path: Path) -> None:
    from crepe.masks import MaskSet

    prune_named(tiny_folder(), tmp_path / "out", text_file, save_masks=True, exclude="model.layers.0.*")
    masks = MaskSet.load(tmp_path / "out" / "masks.safetensors")
    assert len(masks) == 14 and masks.sparsity == 0.5


def test_a_model_in_memory_is_pruned_in_place(tmp_path: Path) -> None:
    model = tiny_model("llama")
    result = crepe.prune(model, tmp_path / "out", rows=torch.randint(3, 128, (4, 16)), pattern="2:4")
    assert result.model is model and result.sparsity == 0.5
    assert {"model.safetensors", "crepe.json", "README.md", "report.html"} <= set(os.listdir(tmp_path / "out"))
    with pytest.raises(UsageError, match="needs tokenizer="):
        crepe.prune(model)


def test_a_module_that_reads_no_tokens_is_asked_for_an_example() -> None:
    with pytest.raises(UsageError, match=r"Linear is no language model of transformers: .* give example="):
        crepe.prune(torch.nn.Linear(4, 4), method="fpgm")


def test_a_model_that_reads_pixels_and_writes_tokens_is_pruned() -> None:
    from transformers import (
        Blip2Config,
        Blip2ForConditionalGeneration,
        Blip2QFormerConfig,
        Blip2VisionConfig,
        OPTConfig,
    )

    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = OPTConfig(**{**sizes, "ffn_dim": 32, "vocab_size": 64, "word_embed_proj_dim": 16})
    vision = Blip2VisionConfig(**sizes, image_size=16, patch_size=8)
    config = Blip2Config(vision_config=vision, qformer_config=Blip2QFormerConfig(**sizes), text_config=text)
    model = Blip2ForConditionalGeneration(config)
    assert model.main_input_name == "pixel_values"
    assert crepe.prune(model, method="magnitude").tensors


def test_steps_of_a_fit_that_is_not_asked_for(caplog: pytest.LogCaptureFixture) -> None:
    rows = torch.randint(3, 128, (2, 16))
    crepe.prune(tiny_model("llama"), rows=rows, refit_steps=3)
    assert "refit_steps = 3 does nothing without --refine refit" in caplog.text


def test_blocks_that_cannot_be_walked_fall_back_to_one_forward() -> None:
    model = tiny_model("llama")
    model.model.layers = torch.nn.ModuleList(list(model.model.layers))
    forward = type(model.model).forward

    def backwards(self: Any, *args: Any, **kwargs: Any) -> Any:
        layers = self.layers
        self.layers = torch.nn.ModuleList(reversed(list(layers)))
        try:
            return forward(self, *args, **kwargs)
        finally:
            self.layers = layers

    rows = torch.randint(3, 128, (4, 16))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(model.model), "forward", backwards)
        result = crepe.prune(model, rows=rows)
        assert "does not pass the blocks in order" in result.notes[0]
        assert result.sparsity == 0.5 and all(r.tokens == 64 for r in result.tensors.values())


def test_a_full_disk_is_one_clear_line(
    tiny_folder: Callable[..., str], text_file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import safetensors.torch

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    folder = tiny_folder()
    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.raises(CrepeError, match=r"No space left on device.*--resume"):
        prune_named(folder, tmp_path / "out", text_file)
    assert not (tmp_path / "out").exists()


def test_environment_does_not_leak(tiny_folder: Callable[..., str], text_file: str, tmp_path: Path) -> None:
    """The manifest is published: it must not name folders of this machine."""
    prune_named(tiny_folder(), tmp_path / "out", text_file)
    for name in ("crepe.json", "README.md", "report.html", "config.json"):
        assert str(tmp_path) not in (tmp_path / "out" / name).read_text(), name
    assert os.sep not in json.loads((tmp_path / "out" / "crepe.json").read_text())["recipe"]["calibration"]
