"""Every causal family: exact zeros, nothing skipped in silence, reload through plain transformers, batch invariance."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import crepe
from crepe.masks import kept_count
from crepe.pipeline.capture import InputRecorder
from crepe.pipeline.plan import make_plan
from crepe.pipeline.walk import Walk, forward_tokens
from crepe.recipe import build, choose
from families import FAMILIES, tiny_model

ROWS = torch.randint(3, 128, (6, 24), generator=torch.Generator().manual_seed(0))
# Reasons for which a tensor inside a block may stay dense.
REASONS = ("router", "bias", "convolution", "no declared matrix layout", "the same tensor as", "embedding")


def _choices(**fields: Any) -> Any:
    return choose(build({"model": "tiny", **fields}))


def _sums(model: Any, batch: int, walked: bool) -> dict[str, Any]:
    """Channel sums of every matrix over ROWS, by walking the blocks or by one plain forward."""
    plan = make_plan(model, _choices())
    recorder = InputRecorder(plan.views)
    batches = list(ROWS.split(batch))
    with torch.no_grad():
        if not walked:
            with recorder:
                for rows in batches:
                    forward_tokens(model, rows)
        else:
            walk = Walk(model, plan.blocks, batches)
            with walk.started():
                for block in plan.blocks:
                    with recorder:
                        walk.advance(block)
    return recorder.sums


@pytest.mark.parametrize("model_type", FAMILIES)
def test_walk_sees_what_a_plain_forward_sees_for_any_batch_size(model_type: str) -> None:
    model = tiny_model(model_type)
    plain, walked, single = _sums(model, 3, False), _sums(model, 3, True), _sums(model, 1, True)
    assert plain.keys() == walked.keys() and len(plain) > 0
    for name, sums in plain.items():
        assert sums.tokens or "[" in name, name  # experts may see none, every other matrix must
        assert torch.equal(sums.square_sum, walked[name].square_sum), name
        assert sums.tokens == walked[name].tokens == single[name].tokens, name
        torch.testing.assert_close(single[name].square_sum, sums.square_sum, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_prune_write_reload(
    model_type: str, tiny_folder: Callable[..., str], text_file: str, tmp_path: Path, request: Any
) -> None:
    from transformers import AutoModelForCausalLM

    folder = tiny_folder(model_type)
    # Both patterns are covered over the families without doubling the time.
    pattern = ("2:4", "unstructured")[list(FAMILIES).index(model_type) % 2]
    fields = {"pattern": pattern, "samples": 6, "seqlen": 24, "batch_size": 3, "calibration": text_file}
    output = tmp_path / "pruned"
    result = crepe.prune(folder, output, **fields)

    for name, report in result.tensors.items():
        total = report.shape[0] * report.shape[1]
        assert report.zeros == total - kept_count(total, 0.5), name
    _assert_nothing_silently_skipped(folder, output, result)
    _assert_kept_weights_are_untouched(Path(folder), output)

    in_memory = AutoModelForCausalLM.from_pretrained(folder)
    rows = _rows(folder, fields)
    crepe.prune(in_memory, rows=rows, pattern=pattern, batch_size=3)
    reloaded = AutoModelForCausalLM.from_pretrained(output)
    with torch.no_grad():
        expected = in_memory(input_ids=ROWS, use_cache=False).logits
        assert torch.equal(reloaded(input_ids=ROWS, use_cache=False).logits, expected)


def _assert_kept_weights_are_untouched(dense: Path, pruned: Path) -> None:
    from safetensors.torch import load_file

    before, after = load_file(dense / "model.safetensors"), load_file(pruned / "model.safetensors")
    assert before.keys() == after.keys()
    for name, tensor in after.items():
        kept = tensor != 0
        assert torch.equal(tensor[kept], before[name][kept]), name


def _rows(folder: str, fields: dict[str, Any]) -> torch.Tensor:
    from transformers import AutoTokenizer

    from crepe.calibration.text import read_corpus
    from crepe.calibration.tokens import packed_rows

    tokenizer = AutoTokenizer.from_pretrained(folder)
    return packed_rows(tokenizer, read_corpus(fields["calibration"]), fields["samples"], fields["seqlen"], 0)


def _assert_nothing_silently_skipped(folder: str, output: Path, result: Any) -> None:
    from transformers import AutoModelForCausalLM

    manifest = json.loads((output / "crepe.json").read_text())
    skipped = {entry["name"]: entry["reason"] for entry in manifest["skipped"]}
    pruned = {name.partition("[")[0] for name in manifest["tensors"]}
    model = AutoModelForCausalLM.from_pretrained(folder)
    wide = {name for name, parameter in model.named_parameters() if parameter.dim() >= 2}
    assert wide <= pruned | skipped.keys()
    assert not pruned & skipped.keys()
    for name, reason in skipped.items():
        assert any(known in reason for known in (*REASONS, "outside the repeated blocks")), (name, reason)
