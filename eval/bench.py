"""`crepe bench M`: tokens per second, memory and file size of a model, beside its dense form in the same run."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from crepe.errors import UsageError
from crepe.eval.generation import Generation
from crepe.eval.timing import Timing, ratio, side_by_side
from crepe.progress import bar

BATCHES = (1, 4, 16)


def bench(
    model: str,
    *,
    reference: str | None = None,
    batch: Sequence[int] = BATCHES,
    prompt: int = 512,
    new_tokens: int = 32,
    rounds: int = 5,
    compile: bool = False,
    dtype: str = "auto",
    device: str = "auto",
    trust_remote_code: bool = False,
) -> dict[str, Any]:
    """Measure `model`, and `reference` in turn with it: the weights of a packed model, unpacked, unless one is named.

    Args:
        batch: prompts at once, each measured alone. prompt: tokens of a prompt (random ones; speed does not depend on
            which). new_tokens: tokens decoded after it. rounds: measurements of each, after one that does not count.
            compile: torch.compile fuses the decode step of both first.

    Returns:
        `machine`, `models` (sizes in bytes by name), `runs` (tokens per second: median, low, high), `ratios` (how many
        times faster than the reference) and `not_measured` (what this machine cannot show, with the reason).

    Raises:
        CrepeError: a model that cannot be read. UsageError: numbers under 1.
    """
    from crepe.checkpoint.read import load_model
    from crepe.models.load import parse_device, require_length

    if min([prompt, new_tokens, rounds, *batch], default=0) < 1:
        raise UsageError(
            f"batch {list(batch)}, prompt {prompt}, new tokens {new_tokens}, rounds {rounds}: each at least 1"
        )
    place = parse_device(device)
    names = {"model": model} | ({"reference": reference} if reference else {})
    options: dict[str, Any] = {"dtype": dtype, "device": str(place), "trust_remote_code": trust_remote_code}
    opened = {role: load_model(name, **options) for role, name in names.items()}
    if reference is None and is_packed(opened["model"]):
        names["reference"] = f"{model}, unpacked"
        # Unpacked on the CPU: its packed layers are not what is measured.
        opened["reference"] = load_model(model, **{**options, "device": "cpu"}).dequantize().to(place)
    what = f"a prompt of {prompt} tokens with {new_tokens} new ones"
    for one in opened.values():
        require_length(one.config, prompt + new_tokens, what, "--prompt or --new-tokens")
    with torch.cuda.device(place) if place.type == "cuda" else nullcontext():
        runs, ratios, notes = measure(opened, batch, prompt, new_tokens, rounds, place, compile)
    return {
        "machine": machine(place),
        "models": {
            role: {"name": names[role], **sizes(opened[role], names[role] in (model, reference))} for role in names
        },
        "prompt": prompt,
        "new_tokens": new_tokens,
        "rounds": rounds,
        "compiled": compile,
        "runs": runs,
        "ratios": ratios,
        "not_measured": notes,
    }


def measure(
    opened: dict[str, Any],
    batch: Sequence[int],
    prompt: int,
    steps: int,
    rounds: int,
    place: torch.device,
    compiled: bool = False,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[str]]:
    """Runs, ratios and what could not be measured, of models on `place`: "model", and "reference" in turn with it."""
    runs: list[dict[str, Any]] = []
    ratios: list[dict[str, Any]] = []
    notes: dict[str, None] = {}
    with bar("measuring", len(batch)) as advance:
        for size in batch:
            if compiled:
                torch.compiler.reset()  # else graphs of a few batch sizes fill its cache and the rest is not compiled
            made = {role: _generation(one, size, prompt, steps, place, compiled) for role, one in opened.items()}
            for role, one in made.items():
                if not one.record():
                    notes[f"CUDA graphs of {role}: {one.graph_refused}"] = None
            reading = {role: one.prefill for role, one in made.items()}
            prefill = side_by_side(reading, rounds, place)
            decode = side_by_side({role: one.decode for role, one in made.items()}, rounds, place, before=reading)
            for what, found, tokens in (("prefill", prefill, prompt), ("decode", decode, steps)):
                runs += [_run(what, size, role, timing, size * tokens) for role, timing in found.items()]
                if len(found) == 2:
                    times = ratio(found["reference"], found["model"])
                    ratios.append({"what": what, "batch": size, "times_faster": times})
            peaks = _peaks(made, place)
            for run in runs:
                if run["batch"] == size and peaks:
                    run["peak_memory_bytes"] = peaks[run["model"]]
            advance()
    return runs, ratios, list(notes)


def _generation(model: Any, batch: int, prompt: int, steps: int, place: torch.device, compiled: bool) -> Generation:
    vocabulary = model.get_input_embeddings().num_embeddings
    tokens = torch.randint(vocabulary, (batch, prompt), generator=torch.Generator().manual_seed(0))
    return Generation(model, tokens.to(place), steps, compiled)


def _run(what: str, batch: int, role: str, timing: Timing, tokens: int) -> dict[str, Any]:
    return {"what": what, "batch": batch, "model": role, "tokens_per_second": timing.rate(tokens)}


def _peaks(made: dict[str, Generation], place: torch.device) -> dict[str, int]:
    """Bytes that each model needs at most while it reads and writes, its weights included; nothing without CUDA."""
    if place.type != "cuda":
        return {}
    weights = {role: _memory(one.model) for role, one in made.items()}
    found = {}
    for role, one in made.items():
        torch.cuda.reset_peak_memory_stats(place)
        one.prefill()
        one.decode()
        found[role] = torch.cuda.max_memory_allocated(place) - sum(weights.values()) + weights[role]
    return found


def _memory(model: Any) -> int:
    tensors = {t.data_ptr(): t for t in [*model.parameters(), *model.buffers()]}
    return sum(t.numel() * t.element_size() for t in tensors.values())


def is_packed(model: Any) -> bool:
    """Asks the loaded model, because its name may be a folder, an alias or a Hub id."""
    quantizer = getattr(model, "hf_quantizer", None)
    return getattr(getattr(quantizer, "quantization_config", None), "format", None) == "packed"


def sizes(model: Any, stored: bool = True) -> dict[str, int | None]:
    """Bytes of the weight files (None where there are none of this form), and of parameters and buffers in memory."""
    folder = Path(getattr(model, "name_or_path", ""))
    files = sorted(folder.glob("model*.safetensors")) if stored and folder.is_dir() else []
    return {
        "file_bytes": sum(file.stat().st_size for file in files) if files else None,
        "memory_bytes": _memory(model),
    }


def machine(place: torch.device) -> dict[str, Any]:
    """What was measured on: device, threads, versions."""
    import transformers

    found: dict[str, Any] = {
        "device": torch.cuda.get_device_name(place) if place.type == "cuda" else f"{place.type} ({platform.machine()})",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }
    if place.type == "cuda":
        from importlib.metadata import version
        from importlib.util import find_spec

        found |= {"triton": version("triton") if find_spec("triton") else None, "cuda": torch.version.cuda}
        found["cusparselt"] = torch.backends.cusparselt.version()
    return found
