"""Refinements and allocations in whole runs: never worse, resumed to the same bytes, exact, loud where they do not
fit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import crepe
from crepe.errors import CrepeError, UsageError
from crepe.masks import MaskSet, kept_count, parse_pattern
from crepe.models.blocks import find_blocks
from crepe.pipeline.walk import Walk, forward_tokens
from crepe.refine import REFINEMENTS
from families import tiny_model
from runs import Killed, assert_resume_gives_the_same_bytes, files_of, prune_named

ROWS = torch.randint(3, 128, (12, 24), generator=torch.Generator().manual_seed(0))
FAMILIES = ["llama", "gpt2", "bloom", "qwen3_moe", "gpt_oss", "mamba", "gemma3n_text", "phi3"]


def _in_memory(model_type: str = "llama", **fields: Any) -> tuple[Any, Any]:
    model = tiny_model(model_type)
    return model, crepe.prune(model, rows=ROWS, batch_size=2, **{"refit_steps": 8, **fields})


@pytest.mark.parametrize("model_type", FAMILIES)
@pytest.mark.parametrize("pattern", ["unstructured", "2:4"])
def test_every_refinement_lowers_the_error_of_every_tensor_and_block(model_type: str, pattern: str) -> None:
    """All of them in one run; a step that would raise the error is not taken."""
    names = ["permute", "dsnot", "swaps", "sparsegpt", "admm", "cg", "optimal", "refit"]
    refine = [name for name in names if pattern == "2:4" or name != "permute"]
    model, result = _in_memory(model_type, pattern=pattern, refine=refine)
    for name, report in result.tensors.items():
        steps = list(report.steps.values())
        assert list(report.steps) == ["select", *refine[:-1]], name
        assert steps == sorted(steps, reverse=True), (name, report.steps)
        # Weights of channels that are always zero may go as well.
        assert report.zeros >= report.total - kept_count(report.total, 0.5), name
    assert len(result.fits) == len(find_blocks(model))
    assert all(after <= before for fits in result.fits.values() for before, after in fits.values())
    if model_type == "llama":
        assert any(after < before for fits in result.fits.values() for before, after in fits.values())


def test_repairs_lower_the_distance_to_the_dense_model() -> None:
    rows = torch.randint(3, 128, (96, 24), generator=torch.Generator().manual_seed(1))
    dense = forward_tokens(tiny_model("llama"), ROWS).logits

    def distance(**fields: Any) -> float:
        model = tiny_model("llama")
        crepe.prune(model, rows=rows, pattern="2:4", **fields)
        with torch.no_grad():
            return float((forward_tokens(model, ROWS).logits - dense).square().mean())

    plain, updated, fitted = distance(), distance(refine="admm"), distance(refine="admm,refit", refit_steps=80)
    assert updated < 0.9 * plain and fitted < 0.95 * updated


@pytest.mark.parametrize("model_type", ["llama", "qwen3_moe"])
@pytest.mark.parametrize(
    "fields",
    [
        {"refine": "fold,sparsegpt,refit", "pattern": "2:4", "refit_steps": 6},
        {"refine": "permute,cg", "pattern": "2:4", "save_masks": True},
        {"allocation": "error", "sparsity": 0.6, "refine": "swaps"},
    ],
)
def test_resume_gives_the_same_bytes(
    fields: dict[str, Any], model_type: str, tiny_folder: Callable[..., str], text_file: str, tmp_path: Path
) -> None:
    assert_resume_gives_the_same_bytes(tiny_folder(model_type), text_file, tmp_path, **fields)


def test_a_kill_between_the_last_block_and_the_output_is_resumed(
    tiny_folder: Callable[..., str], text_file: str, tmp_path: Path
) -> None:
    """Nothing is left to walk then, so nothing may ask for a batch."""
    folder, fields = tiny_folder(), {"refine": "fold,sparsegpt,refit", "pattern": "2:4", "refit_steps": 2}
    prune_named(folder, tmp_path / "whole", text_file, **fields)

    def killed(*arguments: Any) -> None:
        raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("crepe.pipeline.named.assemble", killed)
        with pytest.raises(Killed):
            prune_named(folder, tmp_path / "resumed", text_file, **fields)
    prune_named(folder, tmp_path / "resumed", text_file, resume=True, **fields)
    assert files_of(tmp_path / "resumed") == files_of(tmp_path / "whole")


def test_a_kill_in_the_middle_of_a_refit_loses_only_that_block(
    tiny_folder: Callable[..., str], text_file: str, tmp_path: Path
) -> None:
    import crepe.refine.refit as module

    folder, fields = tiny_folder(), {"refine": "refit", "refit_steps": 6}
    prune_named(folder, tmp_path / "whole", text_file, **fields)
    count, original = [0], module.loss

    def loss(*tensors: torch.Tensor) -> torch.Tensor:
        count[0] += 1
        if count[0] == 15:
            raise Killed
        return original(*tensors)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "loss", loss)
        with pytest.raises(Killed):
            prune_named(folder, tmp_path / "resumed", text_file, **fields)
    journal = (tmp_path / "resumed.partial" / "journal.jsonl").read_text().splitlines()
    assert len(journal) == 2  # the run, and its first block
    prune_named(folder, tmp_path / "resumed", text_file, resume=True, **fields)
    assert files_of(tmp_path / "resumed") == files_of(tmp_path / "whole")


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "phi3", "qwen3_moe", "qwen2"])
def test_folding_alone_leaves_the_model_as_it_was(model_type: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a mask that keeps everything, what is left of the run is the folding."""
    from crepe.masks import NofM

    monkeypatch.setattr(NofM, "select", lambda self, score, *rest: torch.ones_like(score, dtype=torch.bool))
    before = tiny_model(model_type)
    with torch.no_grad():
        expected = forward_tokens(before, ROWS).logits
        model, result = _in_memory(model_type, pattern="2:4", refine="fold")
        found = forward_tokens(model, ROWS).logits
    folded = [name for name, report in result.tensors.items() if report.columns == "folded"]
    assert folded and any(not torch.equal(p, q) for p, q in zip(before.parameters(), model.parameters(), strict=True))
    assert float((found - expected).abs().max()) < 1e-5
    assert any("keep the order of their columns" in note for note in result.notes)


def test_a_folded_checkpoint_is_contiguous_and_loads(
    tiny_folder: Callable[..., str], text_file: str, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    prune_named(tiny_folder(), tmp_path / "out", text_file, pattern="2:4", refine="fold,admm")
    about = json.loads((tmp_path / "out" / "crepe.json").read_text())
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    for name, entry in about["tensors"].items():
        weight = model.get_parameter(name)
        assert parse_pattern("2:4").violations(weight != 0) == 0
        assert entry["columns"] == ("folded" if "o_proj" in name or "down_proj" in name else "in place")


def test_a_permuted_mask_holds_in_its_own_order(
    tiny_folder: Callable[..., str], text_file: str, tmp_path: Path
) -> None:
    prune_named(tiny_folder(), tmp_path / "out", text_file, pattern="2:4", refine="permute", save_masks=True)
    masks = MaskSet.load(tmp_path / "out" / "masks.safetensors")
    masks.check()
    permuted = {name: mask for name, mask in masks.items() if mask.order is not None}
    assert permuted and any(mask.pattern.violations(mask.kept) for mask in permuted.values())


def test_weights_that_were_zero_before_stay_zero_through_a_fit() -> None:
    model = tiny_model("llama")
    with torch.no_grad():
        for block in find_blocks(model):
            for parameter in block.module.parameters():
                if parameter.dim() == 2:
                    parameter *= torch.rand_like(parameter) < 0.4
    result = crepe.prune(model, rows=ROWS, batch_size=2, pattern="2:4", refine="refit", refit_steps=8)
    assert result.sparsity > 0.55
    for name, report in result.tensors.items():
        assert int((model.get_parameter(name) == 0).sum()) >= report.zeros


def test_folding_goes_with_one_pass() -> None:
    _, result = _in_memory(pattern="2:4", refine="fold", pipeline="one-pass")
    assert any(report.columns == "folded" for report in result.tensors.values())
    assert not any("one full forward" in note for note in result.notes)


def test_the_dense_stream_sees_the_dense_model() -> None:
    model, dense = tiny_model("llama"), tiny_model("llama")
    blocks = find_blocks(model)
    walk = Walk(model, blocks, [ROWS], streams=2)
    with torch.no_grad():
        states = dense(input_ids=ROWS, output_hidden_states=True, use_cache=False).hidden_states
        with walk.started():
            for index, block in enumerate(blocks[:-1]):
                (target,) = list(walk.advancing(block, 1))
                torch.testing.assert_close(target, states[index + 1])
                for parameter in block.module.parameters():
                    parameter.mul_(0.5)
                walk.advance(block, 0)
            (pruned,) = [call.args[0] for call in walk.calls(blocks[-1], 0)]
    assert not torch.allclose(pruned, states[len(blocks) - 1])


@pytest.mark.parametrize("allocation", ["owl", "alpha", "error"])
def test_allocations_meet_the_budget_and_differ(allocation: str) -> None:
    _, result = _in_memory(allocation=allocation, sparsity=0.6)
    total = sum(report.total for report in result.tensors.values())
    assert sum(report.zeros for report in result.tensors.values()) == total - kept_count(total, 0.6)
    assert len({round(report.zeros / report.total, 3) for report in result.tensors.values()}) > 1


def test_bounds_hold() -> None:
    fields = {"allocation": "error", "sparsity": 0.5, "bounds": "*.v_proj.*=0:0.1"}
    _, result = _in_memory(**fields)
    shares = {name: report.zeros / report.total for name, report in result.tensors.items()}
    assert all(share <= 0.1 for name, share in shares.items() if "v_proj" in name)
    assert result.sparsity == pytest.approx(0.5, abs=1e-4)


def test_a_mix_gives_every_matrix_one_of_its_patterns() -> None:
    _, result = _in_memory(pattern="dense+2:4", sparsity=0.3, allocation="error", refine="fold,sparsegpt")
    assert {report.pattern for report in result.tensors.values()} == {"dense", "2:4"}
    largest = max(report.total for report in result.tensors.values())
    total = sum(report.total for report in result.tensors.values())
    assert 0.3 * total <= sum(report.zeros for report in result.tensors.values()) < 0.3 * total + largest


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"refine": "permute"}, "refinement 'permute' does not fit pattern unstructured: the order of columns matters"),
        ({"refine": "fold"}, "refinement 'fold' does not fit pattern unstructured"),
        ({"refine": "sparsegpt", "pattern": "colblock:8x8"}, "does not fit pattern colblock:8x8: it chooses among"),
        ({"refine": "refit", "pipeline": "one-pass"}, "refinement 'refit' fits blocks to the inputs they will get"),
        ({"refine": "cg,cg"}, "names a refinement twice"),
        ({"refine": "admn"}, "unknown refinement 'admn': did you mean 'admm'"),
        ({"allocation": "owl", "pattern": "2:4"}, "allocation 'owl' has nothing to divide"),
        ({"allocation": "owl", "compare": "global"}, "compare = 'global' divides the sparsity by itself"),
        ({"bounds": "*=0.9:0.1"}, "use GLOB=LOW:HIGH"),
        ({"bounds": "*.nothing=0:1"}, "matches no pruned tensor"),
        ({"bounds": "*=0:1", "compare": "global"}, "leave allocation and bounds out"),
        ({"recipe": "fast", "refine": "refit", "pipeline": "one-pass"}, "use --pipeline sequential"),
        ({"bounds": "*=0.6:0.9"}, "sparsity 0.5 is out of reach: the bounds"),
    ],
)
def test_what_does_not_go_together_is_one_line(fields: dict[str, Any], message: str) -> None:
    model = tiny_model("llama")
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    with pytest.raises((UsageError, CrepeError), match=message.replace("*", r"\*")) as caught:
        crepe.prune(model, rows=ROWS, **fields)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())


@pytest.mark.parametrize("name", [name for name in REFINEMENTS.names() if name not in ("fold", "refit")])
def test_dead_channels_and_few_tokens_are_no_trouble(name: str) -> None:
    """Fewer tokens than channels, and channels that are always zero."""
    model = tiny_model("llama")
    with torch.no_grad():
        for block in find_blocks(model):
            block.module.mlp.up_proj.weight[:4] = 0.0
    result = crepe.prune(model, rows=ROWS[:1, :6], refine=name, pattern="2:4")
    assert all(bool(torch.isfinite(parameter).all()) for parameter in model.parameters())
    assert result.sparsity >= 0.5


def test_broken_activations_are_named() -> None:
    model = tiny_model("llama")
    with torch.no_grad():
        model.model.embed_tokens.weight[:, 0] = float("nan")
    for refine in ("cg", "swaps", "refit", "fold"):
        with pytest.raises(CrepeError, match="NaN or infinite"):
            crepe.prune(
                model, rows=ROWS, refine=refine, method="magnitude" if refine != "fold" else "wanda", pattern="2:4"
            )


@pytest.mark.parametrize("recipe", ["fast", "balanced", "best"])
@pytest.mark.parametrize("pattern", ["unstructured", "2:4", "dense+2:4", "colblock:16x8"])
def test_recipes_fit_every_pattern(recipe: str, pattern: str) -> None:
    """With the batches of the recipe itself."""
    result = crepe.prune(tiny_model("llama"), rows=ROWS, recipe=recipe, pattern=pattern, refit_steps=2)
    assert result.sparsity == pytest.approx(0.5, abs=0.02)


def test_dry_run_prints_what_a_recipe_costs(
    tiny_folder: Callable[..., str], text_file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from crepe.cli.main import main

    folder, costs = tiny_folder(), []
    for recipe in ("fast", "best"):
        arguments = ["prune", "--model", folder, "--recipe", recipe, "--calibration", text_file, "--dry-run", "--json"]
        assert main(arguments) == 0
        costs.append(json.loads(capsys.readouterr().out)["expected"])
    assert costs[1]["seconds"] > costs[0]["seconds"] and costs[1]["memory_bytes"] > costs[0]["memory_bytes"]


def test_dry_run_counts_the_text_that_the_model_writes_and_tied_weights_once(
    tiny_folder: Callable[..., str], text_file: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from crepe.cli.main import main

    monkeypatch.setattr("crepe.pipeline.plan.cache_bytes", lambda model, samples, seqlen: 10**12)
    folder, found = tiny_folder(), {}
    tiny_model("llama", tie_word_embeddings=True).save_pretrained(folder)
    for calibration in ("self", text_file):
        assert main(["prune", "--model", folder, "--calibration", calibration, "--dry-run", "--json"]) == 0
        found[calibration] = json.loads(capsys.readouterr().out)["expected"]
    assert found["self"]["memory_bytes"] > 10**12 > found[text_file]["memory_bytes"]
    model = crepe.load(folder)[0]
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert found["self"]["disk_bytes"] == sum(p.numel() * p.element_size() for p in model.parameters())
