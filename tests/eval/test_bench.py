"""`crepe bench`: what is timed is what `generate` computes; both models in turn; sizes as they are on disk."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import fails
from crepe.cli.main import main
from crepe.errors import CrepeError
from crepe.eval.bench import bench
from crepe.eval.generation import Generation
from crepe.eval.timing import Timing, ratio, side_by_side
from families import tiny_model
from runs import prune_named

SMALL = {"batch": [1, 2], "prompt": 8, "new_tokens": 3, "rounds": 2}


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of tokens that each run of a compiled graph took, compiled without a compiler."""
    taken: list[int] = []

    def backend(graph: Any, inputs: Any) -> Any:
        def run(*values: Any) -> Any:
            taken.append(next(value.numel() for value in values if value.dtype == torch.int64))
            return graph.forward(*values)

        return run

    torch.compiler.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    return taken


@pytest.mark.parametrize("compiled", [False, True])
def test_prefill_and_decode_make_the_tokens_of_generate(compiled: bool, graphs: list[int]) -> None:
    model = tiny_model("llama")
    prompt = torch.randint(3, 128, (2, 9), generator=torch.Generator().manual_seed(0))
    generation = Generation(model, prompt, 4, compiled)
    expected = model.generate(prompt, max_new_tokens=5, min_new_tokens=5, do_sample=False, pad_token_id=0)
    for _ in range(2):  # the second time as the first
        generation.prefill()
        made = [generation.token.clone()]
        generation.steps = 1
        for _ in range(4):
            generation.decode()
            made.append(generation.token.clone())
        assert torch.equal(torch.cat(made, 1), expected[:, 9:])
    # One to compile and two times four steps; never the prompt.
    assert graphs == [2] * (9 if compiled else 0)


def test_every_batch_size_is_compiled(
    tiny_folder: Callable[..., str], graphs: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    """More of them than torch keeps graphs of one function."""
    sizes = list(range(1, 11))
    steps = ["--prompt", "4", "--new-tokens", "2", "--rounds", "1", "--compile"]
    assert main(["bench", tiny_folder(), "--batch", ",".join(map(str, sizes)), *steps]) == 0
    assert "the decode step is fused by torch.compile" in capsys.readouterr().out
    assert {size: graphs.count(size) for size in sizes} == dict.fromkeys(sizes, 1 + 2 * 2)


def test_a_step_that_cannot_be_compiled_is_one_line(
    tiny_folder: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def backend(graph: Any, inputs: Any) -> Any:
        raise RuntimeError("no C++ compiler")

    torch.compiler.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    with pytest.raises(CrepeError, match=r"cannot compile the decode step.*no C"):
        bench(tiny_folder(), compile=True, **SMALL)


def test_contestants_take_turns() -> None:
    order: list[str] = []
    found = side_by_side({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 3, torch.device("cpu"))
    assert order == ["a", "b"] * 4 and len(found["a"].seconds) == 3


def test_rates_and_ratios() -> None:
    timing = Timing((1.0, 4.0, 2.0))
    assert timing.rate(8) == {"median": 4.0, "low": 2.0, "high": 8.0}
    assert ratio(timing, Timing((0.5, 1.0, 1.0))) == 2.0


def test_a_model_needs_no_tokenizer(tiny_folder: Callable[..., str]) -> None:
    folder = Path(tiny_folder())
    for path in folder.glob("*token*"):
        path.unlink()
    assert bench(str(folder), **SMALL)["runs"]


def test_both_models_are_measured(tiny_folder: Callable[..., str]) -> None:
    folder = tiny_folder()
    result = bench(folder, reference=folder, **SMALL)
    assert {(run["what"], run["batch"], run["model"]) for run in result["runs"]} == {
        (what, batch, role) for what in ("prefill", "decode") for batch in (1, 2) for role in ("model", "reference")
    }
    assert all(0 < run["tokens_per_second"]["low"] <= run["tokens_per_second"]["high"] for run in result["runs"])
    assert {(found["what"], found["batch"]) for found in result["ratios"]} == {
        (what, batch) for what in ("prefill", "decode") for batch in (1, 2)
    }
    size = (Path(folder) / "model.safetensors").stat().st_size
    assert result["models"]["model"]["file_bytes"] == size


def test_a_packed_model_is_measured_beside_its_own_weights(
    tiny_folder: Callable[..., str], text_file: str, tmp_path: Path
) -> None:
    prune_named(tiny_folder(), tmp_path / "packed", text_file, pattern="2:4", format="packed")
    result = bench(str(tmp_path / "packed"), **SMALL)
    assert {run["model"] for run in result["runs"]} == {"model", "reference"} and len(result["ratios"]) == 4
    assert result["models"]["reference"]["memory_bytes"] > result["models"]["model"]["memory_bytes"]
    assert result["models"]["reference"]["file_bytes"] is None


def test_a_packed_model_of_the_hub_has_its_dense_form_too(
    tiny_folder: Callable[..., str], text_file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Known by its id alone, from the cache, with no network."""
    place = tmp_path / "cache" / "models--owner--packed"
    snapshot = place / "snapshots" / ("a" * 40)
    prune_named(tiny_folder(), tmp_path / "packed", text_file, pattern="2:4", format="packed")
    shutil.copytree(tmp_path / "packed", snapshot)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text("a" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    result = bench("owner/packed", **{**SMALL, "batch": [1]})
    assert result["models"]["reference"]["name"] == "owner/packed, unpacked" and len(result["ratios"]) == 2
    assert result["models"]["model"]["file_bytes"] == (snapshot / "model.safetensors").stat().st_size


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_what_it_cannot_measure(tiny_folder: Callable[..., str]) -> None:
    assert bench(tiny_folder(), **SMALL)["not_measured"] == ["CUDA graphs of model: no CUDA device"]


def test_command_line(tiny_folder: Callable[..., str], capsys: pytest.CaptureFixture[str]) -> None:
    folder = tiny_folder()
    small = ["--batch", "1", "--prompt", "8", "--new-tokens", "2", "--rounds", "1"]
    assert main(["bench", folder, *small, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["models"]["model"]["name"] == folder
    assert main(["bench", folder, *small]) == 0
    assert "tokens per second" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "nothing to measure"),
        (["FOLDER", "--rounds", "0"], 2, "each at least 1"),
        (["FOLDER", "--prompt", "100000"], 1, "a prompt of 100000 tokens with 32 new ones is more than the"),
        (["nowhere/at/all"], 1, "no folder"),
    ],
)
def test_wrong_words(
    arguments: list[str], code: int, message: str, tiny_folder: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tiny_folder()
    assert message in fails(capsys, code, "bench", *(folder if part == "FOLDER" else part for part in arguments))
