"""Perplexity and fidelity against naive formulas; lm-eval on a local task."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import crepe
from crepe.errors import CrepeError, UsageError
from crepe.eval.fidelity import kl_divergence, negative_log_likelihood, top1_matches
from crepe.eval.perplexity import measure
from families import tiny_model

ROWS = torch.randint(3, 128, (3, 12), generator=torch.Generator().manual_seed(0))


def test_formulas_match_naive_loops() -> None:
    generator = torch.Generator().manual_seed(1)
    p, q = (torch.randn(3, 12, 20, generator=generator) for _ in range(2))
    tokens = torch.randint(0, 20, (3, 12), generator=generator)
    likelihood, divergence, same = 0.0, 0.0, 0
    for row in range(3):
        for i in range(11):
            a, b = p[row, i].double().softmax(-1), q[row, i].double().softmax(-1)
            likelihood -= math.log(float(b[tokens[row, i + 1]]))
            divergence += float((a * (a / b).log()).sum())
            same += int(a.argmax() == b.argmax())
    assert float(negative_log_likelihood(q, tokens)) == pytest.approx(likelihood, rel=1e-5)
    assert float(kl_divergence(p, q)) == pytest.approx(divergence, rel=1e-4)
    assert int(top1_matches(p, q)) == same


def test_a_model_is_equal_to_itself() -> None:
    model = tiny_model("llama")
    found = measure(model, model, ROWS)
    assert found["kl_divergence"] == 0 and found["top1_agreement"] == 1 and found["tokens"] == 33
    assert found["token_perplexity"] == found["reference_token_perplexity"]
    assert measure(tiny_model("llama"), tiny_model("llama", seed=1), ROWS)["kl_divergence"] > 0


def test_evaluate_has_the_keys_of_the_contract(tiny_folder: Callable[..., str], text_file: str) -> None:
    folder = tiny_folder()
    alone = crepe.evaluate(folder, data=text_file, seqlen=32)
    assert {"token_perplexity", "tokens", "seqlen"} <= alone.keys() and "kl_divergence" not in alone
    both = crepe.evaluate(folder, data=text_file, seqlen=32, max_windows=2, reference=folder)
    assert both["tokens"] == 62 and both["windows"] == 2
    assert {"reference_token_perplexity", "kl_divergence", "top1_agreement"} <= both.keys()
    self_text = crepe.evaluate(folder, data="self", seqlen=16, max_windows=2)
    assert self_text["data"] == "text written by the dense model"


def test_local_lm_eval_task(tiny_folder: Callable[..., str], text_file: str, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval", reason="lm-eval is not installed")
    (tmp_path / "tasks").mkdir()
    (tmp_path / "page.jsonl").write_text('{"page": "the cat sat on the mat"}\n{"page": "on a mat sat a cat"}\n')
    (tmp_path / "tasks" / "local.yaml").write_text(
        "task: local_text\ndataset_path: json\n"
        f"dataset_kwargs: {{data_files: {{test: {tmp_path / 'page.jsonl'}}}}}\n"
        "test_split: test\noutput_type: loglikelihood_rolling\ndoc_to_text: ''\ndoc_to_target: '{{page}}'\n"
        "metric_list: [{metric: word_perplexity}]\nmetadata: {version: 1}\n"
    )
    options = {"data": text_file, "seqlen": 32, "max_windows": 1, "include_path": str(tmp_path / "tasks")}
    found = crepe.evaluate(tiny_folder(), tasks=["local_text"], **options)
    assert found["tasks"]["results"]["local_text"]["word_perplexity,none"] > 1
    del options["data"]
    without = crepe.evaluate(tiny_folder(), tasks=["local_text"], **{**options, "seqlen": 32})
    assert without["token_perplexity"] is None and without["tasks"]["results"] == found["tasks"]["results"]
    with pytest.raises(UsageError, match="unknown lm-eval task 'nothing'"):
        crepe.evaluate(tiny_folder(), tasks=["nothing"], **options)


def test_bad_input(tiny_folder: Callable[..., str], text_file: str) -> None:
    folder = tiny_folder()
    with pytest.raises(CrepeError, match="seqlen 4096 is more than the 64 tokens"):
        crepe.evaluate(folder, data=text_file, seqlen=4096)
    with pytest.raises(UsageError, match="at least 2 tokens"):
        crepe.evaluate(folder, data=text_file, seqlen=1)
    model = tiny_model("llama")
    with torch.no_grad():
        model.lm_head.weight.fill_(float("nan"))
    with pytest.raises(CrepeError, match="NaN"):
        measure(model, None, ROWS)
    with pytest.raises(CrepeError, match="same vocabulary"):
        measure(tiny_model("llama"), tiny_model_with_vocabulary(130), ROWS)


def tiny_model_with_vocabulary(size: int) -> object:
    model = tiny_model("llama")
    model.resize_token_embeddings(size)
    return model
