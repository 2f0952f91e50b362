"""A model of the shape of Llama-2-7B with random weights, packed and dense side by side on this GPU.

    python tests/measure/decode.py --pattern 2:4 [--layers 32] [--hidden 4096] [--folder DIR] [--batch 1,16]

Speed does not depend on the weights, so that no download is needed. The model is pruned by magnitude on the GPU,
written packed and read again as users do; the reference is the same model with its zeros, dense. Prints the seconds of
pruning and writing, and what `crepe bench` measures.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import crepe
from crepe.checkpoint.read import load_model
from crepe.eval.bench import machine, measure


def _model(given: argparse.Namespace, device: str) -> Any:
    wide = {4096: 11008}.get(given.hidden, 4 * given.hidden)
    config = LlamaConfig(
        hidden_size=given.hidden, intermediate_size=wide, num_hidden_layers=given.layers,
        num_attention_heads=given.hidden // 128, num_key_value_heads=given.hidden // 128, max_position_embeddings=4096,
        dtype="bfloat16",
    )  # fmt: skip
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(device):
        model = LlamaForCausalLM(config).eval()
    torch.set_default_dtype(torch.float32)
    return model


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--pattern", default="2:4")
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--hidden", type=int, default=4096)
    parser.add_argument("--folder", default=tempfile.gettempdir())
    parser.add_argument("--batch", default="1,4,16")
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--long", type=int, default=0, help="a longer prompt whose prefill is measured as well")
    parser.add_argument("--compile", action="store_true", help="decode also as torch.compile fuses it")
    given = parser.parse_args()
    place = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    folder = Path(given.folder) / f"packed-{given.pattern.replace(':', '-')}"
    model, started = _model(given, str(place)), time.perf_counter()
    crepe.prune(model, folder, pattern=given.pattern, method="magnitude", format="packed", overwrite=True)
    print(f"pruned, packed and written in {time.perf_counter() - started:.1f} s", flush=True)
    started = time.perf_counter()
    opened = {"model": load_model(str(folder), device=str(place)), "reference": model}
    print(f"read in {time.perf_counter() - started:.1f} s", flush=True)
    about = {"machine": machine(place), "pattern": given.pattern, "layers": given.layers}
    batch = [int(size) for size in given.batch.split(",")]
    _print({**about, "prompt": given.prompt}, opened, batch, given.prompt, given.steps, given.rounds, place)
    if given.long:
        _print({**about, "prompt": given.long}, opened, [1], given.long, 1, given.rounds, place)
    if given.compile:
        about["compiled"] = True
        _print({**about, "prompt": given.prompt}, opened, [1], given.prompt, given.steps, given.rounds, place, True)


def _print(about: dict[str, Any], opened: dict[str, Any], *how: Any) -> None:
    runs, ratios, notes = measure(opened, *how)
    print(json.dumps({**about, "runs": runs, "ratios": ratios, "not_measured": notes}), flush=True)


if __name__ == "__main__":
    main()
