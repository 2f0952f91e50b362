"""Structured runs: importance by the criterion, exact counts, repairs and biases, resume, and loud refusals."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import crepe
from conftest import fails
from crepe.calibration.statistics import ChannelSums
from crepe.errors import CrepeError, UsageError
from crepe.masks import MaskSet
from crepe.models.blocks import find_blocks
from crepe.pipeline.depth import cosine_sum
from crepe.pipeline.walk import forward_tokens
from crepe.refine import REFINEMENTS
from families import tiny_model
from runs import Killed, assert_resume_gives_the_same_bytes, files_of, prune_named

ROWS = torch.randint(3, 128, (12, 24), generator=torch.Generator().manual_seed(0))
HELD = torch.randint(3, 128, (4, 24), generator=torch.Generator().manual_seed(1))


def _pruned(model_type: str = "llama", **fields: Any) -> tuple[Any, Any]:
    model = tiny_model(model_type)
    return model, crepe.prune(model, rows=ROWS, **{"batch_size": 4, "pattern": "channel", **fields})


def _logits(model: Any) -> Tensor:
    with torch.no_grad():
        logits: Tensor = forward_tokens(model, HELD).logits
    return logits


@pytest.mark.parametrize("method", ["magnitude", "wanda", "crepe"])
def test_the_least_important_channels_go(method: str) -> None:
    """Importance is the sum of the criterion's scores over the rows of gate and up and the column of down."""
    from crepe.criteria import score
    from crepe.recipe import build, choose

    dense, (model, _) = tiny_model("llama"), _pruned(method=method, sparsity=0.3, round_to=1, refine="")
    choices = choose(build({"model": "tiny", "method": method, "pattern": "channel", "sparsity": 0.3}))
    inputs: dict[str, list[Tensor]] = {"gate_proj": [], "down_proj": []}
    mlp = dense.model.layers[1].mlp
    for name, seen in inputs.items():
        getattr(mlp, name).register_forward_pre_hook(lambda m, args, seen=seen: seen.append(args[0].flatten(0, -2)))
    with torch.no_grad():
        forward_tokens(dense, ROWS)
    total = torch.zeros(64)
    for name, axis, source in (
        ("gate_proj", 1, "gate_proj"),
        ("up_proj", 1, "gate_proj"),
        ("down_proj", 0, "down_proj"),
    ):
        statistics = ChannelSums.of(torch.cat(inputs[source])[None]).statistics()
        weight = getattr(mlp, name).weight.detach()
        total += score(choices.criterion, weight, statistics, choices.coefficients.of("mlp")).sum(axis)
    removed = ~model.model.layers[1].mlp.down_proj.weight.any(0)
    assert set(removed.nonzero()[:, 0].tolist()) == set(total.argsort()[:19].tolist())


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "qwen3_moe", "gpt_oss"])
@pytest.mark.parametrize(("pattern", "sparsity"), [("channel", 0.3), ("head", 0.5)])
def test_counts_are_exact_and_whole_units_are_zero(model_type: str, pattern: str, sparsity: float) -> None:
    model, result = _pruned(model_type, pattern=pattern, sparsity=sparsity, round_to=1)
    assert result.units and all(result.units.values())
    for record in (record for records in result.units.values() for record in records):
        assert record["kept"] == record["units"] - int(record["units"] * sparsity + 0.5)
        name = record["consumer"]
        weight = dict(model.named_parameters())[name].detach()
        transposed = model_type in ("gpt2", "gpt_oss") and (weight.dim() == 3 or model_type == "gpt2")
        for matrix in weight if weight.dim() == 3 else [weight]:
            columns = (matrix.T if transposed else matrix).any(0)
            assert int(columns.sum()) == record["kept"] * record["width"], name
    assert not {s["name"] for s in result.skipped} & set(result.tensors)
    assert all(report.pattern == pattern for report in result.tensors.values())


def test_masks_are_saved_and_hold_their_pattern(
    tiny_folder: Callable[..., str], text_file: str, tmp_path: Path
) -> None:
    fields = {"pattern": "head", "sparsity": 0.5, "save_masks": True, "refine": "optimal"}
    prune_named(tiny_folder(), tmp_path / "out", text_file, **fields)
    masks = MaskSet.load(tmp_path / "out" / "masks.safetensors")
    masks.check()
    assert {name.split(".")[-2] for name in masks} == {"q_proj", "k_proj", "v_proj", "o_proj"}
    assert masks.sparsity == 0.5


# Repairs


@pytest.mark.parametrize("refine", ["optimal", "cg", "refit", "optimal,refit"])
@pytest.mark.parametrize("model_type", ["llama", "gpt2", "gpt_oss"])
def test_repairs_lower_the_error_and_bring_nothing_back(model_type: str, refine: str) -> None:
    _, plain = _pruned(model_type, sparsity=0.5, pipeline="sequential")
    model, repaired = _pruned(model_type, sparsity=0.5, refine=refine, refit_steps=8)
    for name, report in repaired.tensors.items():
        assert report.zeros >= plain.tensors[name].zeros, name
        steps = list(report.steps.values())
        assert steps == sorted(steps, reverse=True), name
        # The consumers are repaired; the rows that produce for what is gone are just zero.
        assert len(steps) == (0 if refine == "refit" or not any(c in name for c in ("down", "c_proj")) else 2), name
    assert all(after <= before for fits in repaired.fits.values() for before, after in fits.values())
    if "gpt" in model_type:
        assert any("bias" in name for name, _ in model.named_parameters())


def test_least_squares_beats_selection_on_text_that_was_not_seen() -> None:
    rows = torch.randint(3, 128, (96, 24), generator=torch.Generator().manual_seed(2))
    dense = _logits(tiny_model("llama"))

    def distance(**fields: Any) -> float:
        model = tiny_model("llama")
        crepe.prune(model, rows=rows, pattern="channel", sparsity=0.5, **fields)
        return float((_logits(model) - dense).square().mean())

    assert distance(refine="optimal") < 0.95 * distance()


def test_the_bias_of_the_consumer_takes_the_mean_of_what_is_lost() -> None:
    """One block alone, whose inputs do not change: its mean output stays what it was."""
    dense, model = tiny_model("gpt2"), tiny_model("gpt2")
    crepe.prune(model, rows=ROWS, pattern="channel", sparsity=0.5, exclude="transformer.h.[12].*")

    def mean_output(subject: Any) -> Tensor:
        seen: list[Tensor] = []
        hook = subject.transformer.h[0].mlp.register_forward_hook(lambda m, a, output: seen.append(output.detach()))
        with torch.no_grad():
            forward_tokens(subject, ROWS)
        hook.remove()
        return seen[0].flatten(0, 1).mean(0)

    assert not torch.equal(model.transformer.h[0].mlp.c_proj.bias, dense.transformer.h[0].mlp.c_proj.bias)
    assert (mean_output(model) - mean_output(dense)).abs().max() < 1e-5


@pytest.mark.parametrize("name", REFINEMENTS.names())
@pytest.mark.parametrize("pattern", ["channel", "head", "block"])
def test_only_refinements_that_keep_the_mask_fit(name: str, pattern: str) -> None:
    from crepe.recipe import build, choose

    given = {"model": "tiny", "pattern": pattern, "refine": name, "format": "sliced"}
    if pattern != "block" and name in ("optimal", "cg", "refit"):
        assert choose(build(given)).refinements
    else:
        with pytest.raises(UsageError, match=r"fit|block"):
            choose(build(given))


# Allocation


@pytest.mark.parametrize("allocation", ["owl", "alpha", "error"])
@pytest.mark.parametrize("pattern", ["channel", "head"])
def test_allocations_divide_the_units(allocation: str, pattern: str) -> None:
    _, result = _pruned("gpt2", pattern=pattern, sparsity=0.5, allocation=allocation, round_to=1)
    records = [record for found in result.units.values() for record in found]
    total = sum(record["units"] for record in records)
    assert abs(sum(record["kept"] for record in records) - 0.5 * total) <= len(records) / 2


def test_experts_of_a_layer_stay_equally_wide() -> None:
    model, _ = _pruned("qwen3_moe", sparsity=0.5, allocation="error", round_to=1)
    for block in find_blocks(model):
        assert len({int(matrix.any(0).sum()) for matrix in block.module.mlp.experts.down_proj}) == 1


# Blocks


def test_influence_is_one_minus_the_mean_cosine() -> None:
    before = torch.tensor([[[1.0, 0.0], [3.0, 4.0]]])
    after = torch.tensor([[[0.0, 2.0], [6.0, 8.0]]])
    total, tokens = cosine_sum(before, after)
    assert float(total) == pytest.approx(1.0) and float(tokens) == 2


def test_the_block_that_does_least_goes(tmp_path: Path) -> None:
    model = tiny_model("llama")
    with torch.no_grad():
        for parameter in model.model.layers[1].parameters():
            parameter.mul_(0.01)
    result = crepe.prune(model, tmp_path / "out", rows=ROWS, pattern="block", sparsity=1 / 3, format="sliced")
    assert [about["stays"] for about in result.units.values()] == [True, False, True]
    influence = [about["influence"] for about in result.units.values()]
    assert influence[1] == min(influence) >= 0
    assert result.sparsity == pytest.approx(1 / 3)


# From folder to folder


@pytest.mark.parametrize("model_type", ["llama", "qwen3_moe"])
@pytest.mark.parametrize(
    "fields",
    [
        {"pattern": "channel", "sparsity": 0.25, "round_to": 4, "refine": "optimal"},
        {"pattern": "head", "sparsity": 0.5},
        {"pattern": "block", "sparsity": 0.4},
    ],
)
def test_resume_gives_the_same_bytes(
    fields: dict[str, Any], model_type: str, tiny_folder: Callable[..., str], text_file: str, tmp_path: Path
) -> None:
    assert_resume_gives_the_same_bytes(tiny_folder(model_type), text_file, tmp_path, format="sliced", **fields)


@pytest.mark.parametrize("pattern", ["channel", "block"])
def test_a_kill_between_the_last_block_and_the_output_is_resumed(
    pattern: str, tiny_folder: Callable[..., str], text_file: str, tmp_path: Path
) -> None:
    folder, fields = tiny_folder(), {"pattern": pattern, "sparsity": 0.4, "format": "sliced"}
    prune_named(folder, tmp_path / "whole", text_file, **fields)

    def killed(*arguments: Any) -> None:
        raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("crepe.pipeline.slices.write_slices", killed)
        with pytest.raises(Killed):
            prune_named(folder, tmp_path / "resumed", text_file, **fields)
    prune_named(folder, tmp_path / "resumed", text_file, resume=True, **fields)
    assert files_of(tmp_path / "resumed") == files_of(tmp_path / "whole")


def test_a_sliced_folder_from_the_command_line(
    tiny_folder: Callable[..., str], text_file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from crepe.cli.main import main

    out = tmp_path / "out"
    words = ["prune", "--model", tiny_folder(), "--output", str(out), "--calibration", text_file, "--samples", "4"]
    words += ["--seqlen", "24", "--pattern", "channel", "--sparsity", "0.25", "--format", "sliced", "--json"]
    assert main(words) == 0
    printed = json.loads(capsys.readouterr().out)
    model, _ = crepe.load(str(out))
    assert printed["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    assert printed["parameters"] < printed["dense_parameters"]
    assert json.loads((out / "crepe.json").read_text())["sliced"]["config"] == {"intermediate_size": 48}
    card = (out / "README.md").read_text()
    assert "as large and as fast as" not in card and f"{printed['parameters']:,}" in card


# Refusals


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"pattern": "2:4", "format": "sliced"}, "cuts whole units out: use it with channel, head or block, not 2:4"),
        ({"pattern": "block"}, "use --format sliced"),
        ({"pattern": "block", "format": "sliced", "refine": "optimal"}, "refine does not go with pattern 'block'"),
        ({"pattern": "block", "format": "sliced", "round_to": 2}, "round_to does not go with pattern 'block'"),
        ({"round_to": 0}, "round_to = 0"),
        ({"pattern": "unstructured", "round_to": 8}, "only for the patterns channel and head"),
        ({"sparsity": 0.999, "round_to": 1}, "would leave none of the 64 channels behind"),
        ({"sparsity": 0.2, "round_to": 64}, "nothing would be removed: with sparsity 0.2 and round_to 64"),
        ({"pattern": "head", "sparsity": 0.1}, "nothing would be removed"),
        ({"refine": "admm"}, "does not fit pattern channel: it chooses a mask of its own"),
    ],
)
def test_wrong_words_are_named(fields: dict[str, Any], message: str, tmp_path: Path) -> None:
    output = tmp_path / "out" if fields.get("format") == "sliced" else None
    model = tiny_model("llama")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(UsageError, match=message):
        crepe.prune(model, output, rows=ROWS, **{"pattern": "channel", **fields})
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("model_type", "pattern", "message"),
    [
        ("mamba", "channel", "such as in backbone.layers.0: no matrix"),
        ("gpt_bigcode", "head", "has one key-value head"),
        ("mamba", "head", "no attention"),
    ],
)
def test_structure_that_is_not_there_is_named(model_type: str, pattern: str, message: str) -> None:
    with pytest.raises(CrepeError, match=message):
        _pruned(model_type, pattern=pattern)


def test_blocks_without_units_keep_their_size_and_are_noted() -> None:
    _, result = _pruned("recurrent_gemma", pattern="head", sparsity=0.5)
    assert any("keeps its size" in note for note in result.notes)


@pytest.mark.parametrize("format", ["dense", "packed"])
def test_whole_units_in_a_packed_file_are_noted(format: str) -> None:
    _, result = _pruned(sparsity=0.5, format=format)
    assert any("--format sliced cuts each channel out" in note for note in result.notes) == (format == "packed")


def test_an_excluded_matrix_keeps_its_unit() -> None:
    model, _ = _pruned(sparsity=0.5, exclude="*layers.0.mlp.up_proj*")
    assert model.model.layers[0].mlp.down_proj.weight.all() and not model.model.layers[1].mlp.down_proj.weight.all()


def test_a_sliced_model_in_memory_needs_an_output() -> None:
    with pytest.raises(UsageError, match="give an output"):
        _pruned(format="sliced")


def test_all_blocks_cannot_go(
    capsys: pytest.CaptureFixture[str], tiny_folder: Callable[..., str], text_file: str, tmp_path: Path
) -> None:
    words = ["prune", "--model", tiny_folder(), "--output", str(tmp_path / "out"), "--calibration", text_file]
    words += ["--samples", "2", "--seqlen", "24", "--pattern", "block", "--sparsity", "0.9", "--format", "sliced"]
    assert "3 of 3 blocks" in fails(capsys, 2, *words)
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.partial").exists()


@pytest.mark.parametrize("name", ["fast", "balanced", "best"])
@pytest.mark.parametrize("pattern", ["channel", "head"])
def test_shipped_recipes_repair_what_whole_units_leave(name: str, pattern: str) -> None:
    from crepe.recipe import build, choose

    choices = choose(build({"model": "tiny", "pattern": pattern, "recipe": name}))
    assert list(choices.refinements) == ([] if name == "fast" else ["optimal", "refit"])
