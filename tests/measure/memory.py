"""Peak memory of pruning a model that is larger than the memory allowed: a random Llama of 3 B parameters.

    python tests/measure/memory.py --tokenizer FOLDER --text FILE [--folder WORK]

Writes 6.4 GB of bfloat16 weights below WORK, prunes them with 8 rows of 256 tokens on the CPU, and prints the largest
resident size of the process. The target is 2.5 GB.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

SIZES = {
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "num_hidden_layers": 28,
    "num_attention_heads": 24,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 128256,
    "tie_word_embeddings": True,
}


def write_random_llama(folder: Path, sizes: dict[str, Any]) -> None:
    """One file per block, so that the writer itself needs little memory."""
    import torch
    from accelerate import init_empty_weights
    from safetensors.torch import save_file
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(**sizes, dtype="bfloat16", architectures=["LlamaForCausalLM"])
    with init_empty_weights():
        model = LlamaForCausalLM(config)
    groups: dict[str, list[tuple[str, Any]]] = {}
    for name, parameter in model.named_parameters():
        groups.setdefault(name.split("layers.")[-1].split(".")[0] if "layers." in name else "rest", []).append(
            (name, parameter.shape)
        )
    generator = torch.Generator().manual_seed(0)
    weight_map = {}
    for group, members in groups.items():
        tensors = {n: torch.randn(s, generator=generator).mul_(0.02).to(torch.bfloat16) for n, s in members}
        file = f"model-{group}.safetensors"
        save_file(tensors, folder / file, {"format": "pt"})
        weight_map.update(dict.fromkeys(tensors, file))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    config.save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--text", required=True)
    parser.add_argument("--folder", default=tempfile.gettempdir())
    parser.add_argument("--method", default="crepe")
    given = parser.parse_args()
    model, output = Path(given.folder) / "random-llama-3b", Path(given.folder) / "random-llama-3b-pruned"
    if not (model / "config.json").exists():
        model.mkdir(parents=True, exist_ok=True)
        for file in Path(given.tokenizer).glob("tokenizer*"):
            shutil.copy(file, model)
        subprocess.run([sys.executable, __file__, "--write", str(model)], check=True)
    command = [
        sys.executable,
        "-m",
        "crepe",
        "prune",
        "--model",
        str(model),
        "--output",
        str(output),
        "--overwrite",
        "--json",
    ]
    command += ["--calibration", given.text, "--samples", "8", "--seqlen", "256", "--batch-size", "2"]
    command += ["--method", given.method, "--device", "cpu"]
    result = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    weights = sum(f.stat().st_size for f in model.glob("*.safetensors"))
    print(f"weights on disk {weights / 1e9:.2f} GB, sparsity {result['sparsity']:.4f}, {result['seconds']:.0f} s")
    print(f"peak resident {result['peak_memory_bytes'] / 1e9:.2f} GB (largest child process {peak / 1e9:.2f} GB)")
    shutil.rmtree(output)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--write"]:
        write_random_llama(Path(sys.argv[2]), SIZES)
    else:
        main()
