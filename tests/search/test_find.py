"""Searches from words to a coefficient file: what is written, resumed, transferred and refused."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import crepe
from conftest import fails
from crepe.cli.main import main
from crepe.criteria import Coefficients
from crepe.errors import CrepeError, UsageError
from crepe.search.find import search
from families import tiny_model

FIELDS: dict[str, Any] = {"samples": 4, "seqlen": 24, "held": 2, "finalists": 3}


def _search(folder: str, output: Path | None, text: str, **fields: Any) -> Any:
    return search(folder, output, calibration=text, **{**FIELDS, "trials": 12, **fields})


@pytest.mark.parametrize(
    "fields", [{}, {"pattern": "2:4", "groups": True, "finalists": 0}, {"proxy": "recon+kl", "sampler": "cmaes"}]
)
def test_the_file_holds_what_was_found_and_prune_uses_it(
    fields: dict[str, Any], tiny_folder: Callable[..., str], text_file: str, tmp_path: Path
) -> None:
    folder, path = tiny_folder(), tmp_path / "found.yaml"
    found = _search(folder, path, text_file, **fields)
    content = yaml.safe_load(path.read_text())
    assert {"proxy", "pattern", "model", "trials", "seed", "versions", "sampler", "value"} <= content.keys()
    assert content["trials"] == 12 and content["value"] == found.value and ("groups" in content) == ("groups" in fields)
    assert Coefficients.load(path) == found.coefficients
    result = crepe.prune(
        folder,
        tmp_path / "out",
        calibration=text_file,
        coefficients=str(path),
        pattern=fields.get("pattern", "unstructured"),
        samples=4,
        seqlen=24,
    )
    used = json.loads((tmp_path / "out" / "crepe.json").read_text())["coefficients"]
    assert used["activation"] == found.coefficients.activation and result.sparsity == pytest.approx(0.5, abs=0.01)


def test_the_best_of_the_trials_beats_ria_by_its_proxy(tiny_folder: Callable[..., str], text_file: str) -> None:
    found = _search(tiny_folder(), None, text_file, trials=40, sparsity=0.7, finalists=0)
    assert found.value < found.reference and found.trials == 40 and not found.judged
    assert found.value == min(t.value for t in found.study.trials)


def test_the_judge_has_the_last_word(tiny_folder: Callable[..., str], text_file: str) -> None:
    found = _search(tiny_folder(), None, text_file, trials=40, sparsity=0.7, finalists=4)
    assert len(found.judged) == 6 and {"RIA", "RIA, activation 1"} < {j["name"] for j in found.judged}
    assert [j["judge"] for j in found.judged] == sorted(j["judge"] for j in found.judged)
    winner = found.judged[0]["name"]
    if winner.startswith("trial"):
        wanted = found.study.trials[int(winner.split()[1])].params["activation"]
        assert found.coefficients.activation == wanted
    assert found.coefficients.origin["proxy"] == "fisher, judged by kl"


def test_resumed_gives_the_same_file(tiny_folder: Callable[..., str], text_file: str, tmp_path: Path) -> None:
    folder = tiny_folder()
    whole = _search(folder, tmp_path / "whole.yaml", text_file)
    storage = str(tmp_path / "study")
    _search(folder, None, text_file, trials=5, storage=storage)
    parts = _search(folder, tmp_path / "parts.yaml", text_file, storage=storage)
    assert parts.trials == 12 and whole.value == parts.value
    assert (tmp_path / "whole.yaml").read_text() == (tmp_path / "parts.yaml").read_text()
    with pytest.raises(CrepeError, match=r"recipe.pattern is 'unstructured' there and '2:4' here"):
        _search(folder, None, text_file, storage=storage, pattern="2:4")
    with pytest.raises(CrepeError, match="proxy is 'fisher' there and 'gini' here"):
        _search(folder, None, text_file, storage=storage, proxy="gini")


def test_a_model_in_memory() -> None:
    torch.manual_seed(0)
    model = tiny_model("llama")
    before = {name: p.clone() for name, p in model.named_parameters()}
    rows = torch.randint(3, 100, (6, 16))
    found = crepe.find_coefficients(model, rows=rows, trials=5, proxy="kl", held=2)
    assert isinstance(found, Coefficients)
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())
    with pytest.raises(UsageError, match="held out"):
        crepe.find_coefficients(model, rows=rows, trials=5, proxy="kl", held=6)
    with pytest.raises(UsageError, match="tokenizer="):
        crepe.find_coefficients(model, trials=5)


def test_prune_says_that_coefficients_were_made_for_another_pattern(
    tiny_folder: Callable[..., str], text_file: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "c.yaml"
    Coefficients(0.5, 0.4, 0.1, origin={"pattern": "2:4"}).save(path)
    with caplog.at_level(logging.WARNING, "crepe"):
        crepe.prune(
            tiny_folder(), tmp_path / "out", calibration=text_file, coefficients=str(path), samples=2, seqlen=16
        )
    assert "was found for pattern 2:4; it is used for unstructured" in caplog.text


def test_the_command(
    tiny_folder: Callable[..., str], text_file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "c.yaml"
    arguments = [
        "search",
        "--model",
        tiny_folder(),
        "--output",
        str(path),
        "--calibration",
        text_file,
        "--samples",
        "4",
    ]
    arguments += [
        "--seqlen",
        "24",
        "--held",
        "2",
        "--finalists",
        "2",
        "--trials",
        "12",
        "--check",
        "3",
        "--kernels",
        "3,5",
    ]
    capsys.readouterr()
    assert main([*arguments, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["trials"] == 12 and result["output"] == str(path) and len(result["checked"]) == 4
    report = (tmp_path / "c.html").read_text()
    assert "What it costs: prepares" in report
    for heading in ("History", "Importance", "Proxy against perplexity"):
        assert f"<h2>{heading}" in report
    assert report.count("<svg") == 3 and 'src="http' not in report and 'href="http' not in report
    assert main(arguments) == 1 and "exists" in capsys.readouterr().err
    assert main([*arguments, "--overwrite"]) == 0
    assert "12 trials" in capsys.readouterr().out


def test_studies_of_models_in_memory_are_told_apart(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, rows = tiny_model("llama"), torch.randint(3, 100, (6, 16))
    fields: dict[str, Any] = {"rows": rows, "trials": 3, "proxy": "gini", "held": 2, "storage": str(tmp_path / "s")}
    crepe.find_coefficients(model, **fields)
    for change in ({"proxy": "recon"}, {"pattern": "2:4"}, {"kernels": (3,)}, {"rows": rows + 1}):
        with pytest.raises(CrepeError, match="holds another study"):
            crepe.find_coefficients(model, **{**fields, **change})
    with torch.no_grad():
        next(model.parameters()).mul_(2)
    with pytest.raises(CrepeError, match="weights is"):
        crepe.find_coefficients(model, **fields)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--kernels", "3,x"], "'3,x' must be window sizes such as 3,5,7"),
        (["--balance", "0.5"], "'0.5' must be LOW,HIGH such as 0,1"),
    ],
)
def test_malformed_lists(flags: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["search", *flags])
    assert message in capsys.readouterr().err


def test_dropout_is_off_and_the_mode_comes_back() -> None:
    torch.manual_seed(0)
    model, rows = tiny_model("gpt2").train(), torch.randint(3, 100, (6, 16))
    model.transformer.h[0].eval()
    found = [search(model, rows=rows, trials=3, proxy="kl", held=2).value for _ in range(2)]
    assert found[0] == found[1] and model.training
    assert not model.transformer.h[0].training and model.transformer.h[1].training


def test_experts_compute_as_before_afterwards() -> None:
    model = tiny_model("qwen3_moe")
    model.set_experts_implementation("batched_mm")
    search(model, rows=torch.randint(3, 100, (6, 16)), trials=2, finalists=0)
    assert model.config._experts_implementation == "batched_mm"


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (["--proxy", "ginni"], 2, "did you mean 'gini'"),
        (["--sampler", "cma"], 2, "did you mean 'cmaes'"),
        (["--trials", "0"], 2, "trials = 0"),
        (["--activation", "2,1"], 2, "impossible space: activation 2,1"),
        (["--kernels", "4"], 2, "kernel 4"),
        (["--finalists", "-3"], 2, "finalists = -3: it must be at least 0"),
        (["--check", "-2"], 2, "check = -2: it must be at least 0"),
        (["--pattern", "channel"], 2, "pattern 'channel' removes more than single weights"),
        (["--pattern", "colblock:8x4"], 2, "pattern 'colblock:8x4' removes more than single weights"),
        (["--kernels", "3,3"], 2, "one of them twice"),
        (["--compare", "global"], 2, "search with 'tensor' or 'row'"),
        (["--forms", "contxt"], 2, "did you mean 'context'"),
        (["--pattern", "3:2"], 2, "impossible pattern"),
        (["--storage", "STORAGE"], 1, "no journal of optuna"),
    ],
)
def test_bad_input(
    flags: list[str],
    code: int,
    message: str,
    tiny_folder: Callable[..., str],
    text_file: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "storage").write_text("nonsense\n")
    path = tmp_path / "c.yaml"
    flags = [str(tmp_path / "storage") if flag == "STORAGE" else flag for flag in flags]
    arguments = ["--model", tiny_folder(), "--output", str(path), "--calibration", text_file, *flags]
    assert message in fails(capsys, code, "search", *arguments)
    assert not path.exists() and (tmp_path / "storage").read_text() == "nonsense\n"


def test_a_coefficient_file_names_no_folder_of_the_machine(tmp_path: Path) -> None:
    model = tiny_model("llama")
    (tmp_path / "mine").mkdir()
    model.name_or_path = str(tmp_path / "mine")
    found = search(model, rows=torch.randint(3, 100, (6, 16)), trials=2, finalists=0)
    assert found.coefficients.origin["model"] == "mine"
