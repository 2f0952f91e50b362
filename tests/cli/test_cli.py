"""The command line as a stranger uses it: help, results on stdout, one line for every failure, no traceback."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from conftest import fails, save_tokenizer
from crepe.cli.main import build_parser, main
from families import tiny_model

ROWS = ["--samples", "4", "--seqlen", "16"]


def test_help_answers_quickly_and_imports_nothing_heavy() -> None:
    code = "import sys; from crepe.cli.main import build_parser; build_parser().format_help(); "
    code += "print([m for m in ('torch', 'transformers', 'numpy', 'yaml') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
    times = []
    for _ in range(5):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "crepe", "--help"], check=True, capture_output=True)
        times.append(time.perf_counter() - start)
    assert min(times) < 0.5, times


@pytest.mark.parametrize("module", ["crepe", "crepe.cli.main"])
def test_launchers_start_a_module(module: str) -> None:
    done = subprocess.run([sys.executable, "-m", module, "prune", "--pattern"], capture_output=True, text=True)
    assert done.returncode == 2 and "expected one argument" in done.stderr


def test_help_names_everything_that_can_be_chosen() -> None:
    from crepe.allocation import ALLOCATIONS
    from crepe.criteria import CRITERIA
    from crepe.refine import REFINEMENTS
    from crepe.vision.methods import METHODS
    from crepe.vision.repairs import REPAIRS
    from crepe.vision.widths import RULES

    texts = {action.dest: action.help or "" for action in build_parser()._actions[-1].choices["prune"]._actions}
    for flag, registries in {
        "method": (CRITERIA, METHODS),
        "allocation": (ALLOCATIONS, RULES),
        "refine": (REFINEMENTS, REPAIRS),
    }.items():
        words = set(re.findall(r"[a-z0-9-]+", texts[flag]))
        assert {name for registry in registries for name in registry.names()} <= words, flag


def test_prune_eval_report(
    tiny_folder: Callable[..., str], text_file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, output = tiny_folder(), str(tmp_path / "out")
    capsys.readouterr()
    assert main(["prune", "--model", folder, "--output", output, "--calibration", text_file, *ROWS, "--json"]) == 0
    captured = capsys.readouterr()
    result = json.loads(captured.out)
    assert {"output", "sparsity", "seconds", "peak_memory_bytes", "skipped"} <= result.keys()
    assert f"tiny-llama from {folder}" in captured.err  # the resolved source is always printed
    assert "it/s" not in captured.err  # no bars where nobody watches
    arguments = ["eval", output, "--data", text_file, "--seqlen", "32", "--reference", folder, "--save"]
    assert main([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["tokens"] > 0
    assert main(arguments) == 0
    assert "KL divergence" in capsys.readouterr().out
    assert main(["report", output]) == 0
    assert capsys.readouterr().out.strip().endswith("report.html")


def test_dry_run_touches_nothing(
    tiny_folder: Callable[..., str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tiny_folder()
    before = sorted(p.name for p in tmp_path.rglob("*"))
    assert main(["prune", "--model", folder, "--output", str(tmp_path / "out"), "--dry-run"]) == 0
    text = capsys.readouterr().out
    for words in ("3 blocks", "model.layers.0.self_attn.q_proj.weight  32 x 32", "stay dense", "expected: memory"):
        assert words in text, words
    assert "exists" not in text
    assert main(["prune", "--model", folder, "--output", str(tmp_path), "--dry-run"]) == 0
    assert "exists: the run stops there" in capsys.readouterr().out
    assert main(["prune", "--model", folder, "--dry-run", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert set(result["expected"]) == {"memory_bytes", "disk_bytes", "seconds"} and len(result["tensors"]) == 21
    assert sorted(p.name for p in tmp_path.rglob("*")) == before


def test_recipe_files_and_precedence(
    tiny_folder: Callable[..., str], text_file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"model: {tiny_folder()}\npattern: '2:4'\nseed: 5\ncalibration: {text_file}\nbatch-size: 2\n")
    arguments = ["prune", "--recipe", str(recipe), "--output", str(tmp_path / "out"), "--seed", "7", *ROWS]
    assert main(arguments) == 0
    written = json.loads((tmp_path / "out" / "crepe.json").read_text())["recipe"]
    assert (written["pattern"], written["seed"], written["batch_size"], written["samples"]) == ("2:4", 7, 2, 4)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--model", "lama"], 2, "unknown folder or model alias 'lama': did you mean 'llama'"),
        (["--model", "FOLDER", "--pattern", "3:2"], 2, "impossible pattern '3:2'"),
        (["--model", "FOLDER", "--pattern", "0:4"], 2, "impossible pattern '0:4'"),
        (["--model", "FOLDER", "--pattern", "2:0"], 2, "impossible pattern '2:0'"),
        (["--model", "FOLDER", "--pattern", "dots"], 2, "unknown pattern 'dots'"),
        (["--model", "FOLDER", "--sparsity", "1.5"], 2, "sparsity 1.5 is not in 0 <= S < 1"),
        (["--model", "FOLDER", "--sparsity", "0"], 2, "sparsity 0 removes nothing"),
        (["--model", "FOLDER", "--sparsity", "-0.1"], 2, "sparsity -0.1 is not in 0 <= S < 1"),
        (["--model", "FOLDER", "--sparsity", "nan"], 2, "sparsity nan is not in 0 <= S < 1"),
        (["--model", "FOLDER", "--pattern", "2:4", "--sparsity", "0.7"], 2, "contradicts pattern 2:4"),
        (["--model", "FOLDER", "--method", "wandas"], 2, "unknown method 'wandas': did you mean 'wanda'"),
        (["--model", "FOLDER", "--allocation", "greedy"], 2, "unknown allocation 'greedy'"),
        (["--model", "FOLDER", "--refine", "polish"], 2, "unknown refinement 'polish'"),
        (["--model", "FOLDER", "--compare", "column"], 2, "unknown compare 'column'"),
        (["--model", "FOLDER", "--pattern", "2:4", "--compare", "row"], 2, "only for the unstructured pattern"),
        (["--model", "FOLDER", "--pipeline", "two-pass"], 2, "unknown pipeline 'two-pass'"),
        (["--model", "FOLDER", "--format", "zip"], 2, "unknown format 'zip'"),
        (["--model", "FOLDER", "--dtype", "int3"], 2, "unknown dtype 'int3'"),
        (["--model", "FOLDER", "--device", "gpu9"], 2, "device 'gpu9' cannot be used here"),
        (["--model", "FOLDER", "--samples", "0"], 2, "samples = 0: it must be at least 1"),
        (["--model", "FOLDER", "--recipe", "fats"], 2, "unknown recipe 'fats': did you mean 'fast'"),
        (["--model", "FOLDER", "--recipe", "absent.yaml"], 1, "cannot read recipe absent.yaml"),
        (["--model", "FOLDER", "--coefficients", "absent.yaml"], 1, "cannot read coefficients from absent.yaml"),
        (["--model", "FOLDER", "--pattern", "3:5"], 1, "its 32 inputs are no multiple of 5; choose another pattern"),
        (["--model", "FOLDER", "--calibration", "absent.txt"], 1, "no text file at 'absent.txt'"),
        (["--model", "FOLDER", "--samples", "4000"], 1, "4000 are asked for"),
        (["--model", "FOLDER", "--seqlen", "65"], 1, "seqlen 65 is more than the 64 tokens"),
        (
            ["--model", "FOLDER", "--calibration", "self", "--seqlen", "2", "--weights", "absent.safetensors"],
            1,
            "absent",
        ),
        ([], 2, "no model: give --model"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str],
    code: int,
    message: str,
    tiny_folder: Callable[..., str],
    text_file: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tiny_folder()
    words = [folder if word == "FOLDER" else word for word in arguments]
    if "--calibration" not in words:
        words += ["--calibration", text_file]
    if "--seqlen" not in words and "--recipe" not in words:
        words += ["--seqlen", "16"]
    line = fails(capsys, code, "prune", "--output", str(tmp_path / "out"), *words)
    assert message in line
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.partial").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sparsty: 0.5", "unknown key 'sparsty': did you mean 'sparsity'"),
        ("sparsity: half", "sparsity = 'half': expected float"),
        ("samples: 1.5", "samples = 1.5: expected int"),
        ("- a", "expected a YAML mapping"),
        ("structured: 5", "structured = 5: expected recipe keys"),
    ],
)
def test_bad_recipes(text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "r.yaml").write_text(text)
    arguments = ["prune", "--model", "llama", "--output", str(tmp_path / "out"), "--recipe", str(tmp_path / "r.yaml")]
    assert message in fails(capsys, 2, *arguments)


def _broken_models(folder: Path, kind: str) -> None:
    file = folder / "model.safetensors"
    tensors = load_file(file)
    if kind == "truncated":
        file.write_bytes(file.read_bytes()[:-100])
    elif kind == "corrupt":
        file.write_bytes(b"\xff" * 64 + file.read_bytes()[64:])
    elif kind == "empty":
        file.unlink()
    elif kind in ("nan", "inf"):
        tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = float(kind)
        save_file(tensors, file, {"format": "pt"})
    elif kind == "missing":
        del tensors["model.layers.1.mlp.up_proj.weight"]
        save_file(tensors, file, {"format": "pt"})
    elif kind == "activations":
        tensors["model.layers.0.input_layernorm.weight"][:] = float("inf")
        save_file(tensors, file, {"format": "pt"})
    elif kind == "config":
        (folder / "config.json").write_text('{"model_type": "nothing"}')
    elif kind == "shape":
        tensors["model.layers.1.mlp.up_proj.weight"] = torch.zeros(3, 4)
        save_file(tensors, file, {"format": "pt"})


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("truncated", "is truncated or corrupt"),
        ("corrupt", "is truncated or corrupt"),
        ("empty", "no weights"),
        ("nan", "weights of 'model.layers.1.mlp.up_proj.weight' hold 1 NaN or infinite values"),
        ("inf", "weights of 'model.layers.1.mlp.up_proj.weight' hold 1 NaN or infinite values"),
        ("missing", "lacks 1 tensors, such as 'model.layers.1.mlp.up_proj.weight'"),
        ("activations", "activation statistics (norm) of 'model.layers.0"),
        ("config", "cannot load the model"),
        ("shape", "model.layers.1.mlp.up_proj.weight"),
    ],
)
def test_broken_models_are_one_line(
    kind: str,
    message: str,
    tiny_folder: Callable[..., str],
    text_file: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tiny_folder()
    _broken_models(Path(folder), kind)
    arguments = ["prune", "--model", folder, "--output", str(tmp_path / "out"), "--calibration", text_file, *ROWS]
    assert message in fails(capsys, 1, *arguments)
    assert not (tmp_path / "out").exists()
    # The first block may be finished before a broken weight of the second is met; nothing else is left behind.
    assert (tmp_path / "out.partial").exists() == (kind in ("nan", "inf", "shape"))


def test_an_unwritable_place(
    tiny_folder: Callable[..., str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    line = fails(
        capsys, 1, "prune", "--model", tiny_folder(), "--seqlen", "16", "--output", str(tmp_path / "file" / "out")
    )
    assert "cannot write below" in line


def test_unexpected_failures_are_one_line_too(
    tiny_folder: Callable[..., str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: Any, **kwargs: Any) -> None:
        raise ZeroDivisionError("two\nlines")

    monkeypatch.setattr("crepe.pipeline.named.make_plan", broken)
    arguments = ["prune", "--model", tiny_folder(), "--output", str(tmp_path / "out")]
    assert "unexpected ZeroDivisionError: two lines; CREPE_DEBUG=1" in fails(capsys, 1, *arguments)
    monkeypatch.setenv("CREPE_DEBUG", "1")
    with pytest.raises(ZeroDivisionError):
        main(arguments)


def test_unknown_flags_are_usage_errors(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["prune", "--modle", "llama"])
    assert stopped.value.code == 2


def test_other_weights_for_an_architecture(tiny_folder: Callable[..., str], text_file: str, tmp_path: Path) -> None:
    folder = tiny_folder()
    other = tmp_path / "other.safetensors"
    tensors = tiny_model("llama", seed=5).state_dict()
    save_file(tensors, other)
    arguments = ["prune", "--model", folder, "--weights", str(other), "--output", str(tmp_path / "out")]
    assert main([*arguments, "--calibration", text_file, *ROWS]) == 0
    found = load_file(tmp_path / "out" / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    kept = found[name] != 0
    assert torch.equal(found[name][kept], tensors[name][kept])


def _two_ranks(arguments: list[str]) -> list[subprocess.CompletedProcess[str]]:
    """The command in two processes of one group, as a launcher would start them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "crepe", *arguments]
    running = [
        subprocess.Popen(
            command,
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    done = [(process, *process.communicate(timeout=300)) for process in running]
    return [subprocess.CompletedProcess(command, process.returncode, out, err) for process, out, err in done]


def test_what_looks_at_whole_blocks_runs_in_one_process(
    tiny_folder: Callable[..., str], text_file: str, tmp_path: Path
) -> None:
    arguments = ["prune", "--model", tiny_folder(), "--calibration", text_file, "--refine", "refit"]
    for found in _two_ranks([*arguments, "--device", "cpu", "--output", str(tmp_path / "out")]):
        assert found.returncode == 2 and "refinement 'refit' needs all batches in one process" in found.stderr


@pytest.mark.parametrize("more", [[], ["--refine", "sparsegpt", "--pattern", "2:4"], ["--pattern", "channel"]])
def test_two_processes_give_the_masks_of_one(
    more: list[str], tiny_folder: Callable[..., str], text_file: str, tmp_path: Path
) -> None:
    folder = tiny_folder("qwen3_moe")
    common = ["prune", "--model", folder, "--calibration", text_file, "--samples", "5", "--seqlen", "24"]
    common += ["--batch-size", "1", "--device", "cpu", "--pipeline", "sequential", *more]
    assert main([*common, "--output", str(tmp_path / "one")]) == 0
    done = _two_ranks([*common, "--output", str(tmp_path / "two"), "--json"])
    assert [found.returncode for found in done] == [0, 0], done
    assert [len(found.stdout.strip().splitlines()) for found in done] == [1, 0]  # one rank speaks
    assert json.loads((tmp_path / "two" / "crepe.json").read_text())["fingerprint"]["ranks"] == 2
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys() and all(torch.equal(one[n] != 0, two[n] != 0) for n in one)
    # Sums of x x^T are float32: what is solved with them differs in its last digits.
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=0, atol=1e-4 if more else 0)


def test_a_tokenizer_is_written_with_the_model(tiny_folder: Callable[..., str], text_file: str, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    main(["prune", "--model", tiny_folder(), "--output", str(tmp_path / "out"), "--calibration", text_file, *ROWS])
    (tmp_path / "again").mkdir()
    wanted = save_tokenizer(tmp_path / "again")("the cat").input_ids
    assert AutoTokenizer.from_pretrained(tmp_path / "out")("the cat").input_ids == wanted
