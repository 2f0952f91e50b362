"""Sizes of packed checkpoints beside dense ones: the model is pruned by magnitude in each pattern and packed.

    python tests/measure/packed.py --model M --text FILE [--folder WORK] [--dtype bfloat16]

Prints, for each pattern, the bytes of the weight files and of the pruned matrices alone, dense and packed. The target
for 2:4 is 9/16 = 0.5625 of the pruned matrices.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from pathlib import Path

import crepe

PATTERNS = (("2:4", 0.5), ("unstructured", 0.5), ("unstructured", 0.6), ("colblock:64x8", 0.5))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="llama")
    parser.add_argument("--text", required=True)
    parser.add_argument("--folder", default=tempfile.gettempdir())
    parser.add_argument("--dtype", default="auto")
    given = parser.parse_args()
    print("| pattern | sparsity | dense MB | packed MB | pruned matrices, packed / dense | unpacked in memory |")
    print("|---|---|---|---|---|---|")
    for pattern, sparsity in PATTERNS:
        output = Path(given.folder) / "packed-size"
        crepe.prune(
            given.model, output, pattern=pattern, sparsity=sparsity, method="magnitude", format="packed",
            calibration=given.text, samples=1, seqlen=32, dtype=given.dtype, overwrite=True,
        )  # fmt: skip
        sizes = json.loads((output / "crepe.json").read_text())["packed"]
        shutil.rmtree(output)
        unpacked = sum(not about["runs_packed"] for about in sizes["tensors"].values())
        share = sizes["pruned_bytes"] / sizes["dense_pruned_bytes"]
        sizes_mb = f"{sizes['dense_file_bytes'] / 1e6:.1f} | {sizes['file_bytes'] / 1e6:.1f}"
        print(f"| {pattern} | {sparsity} | {sizes_mb} | {share:.4f} | {unpacked} of {len(sizes['tensors'])} |")


if __name__ == "__main__":
    main()
