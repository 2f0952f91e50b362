"""Pruning and evaluating with torch's own products of 16 bits and with those in float32, one after the other.

    python tests/measure/wide.py --text brown-calibration.jsonl --test wikitext2-test.txt [--samples 4] [--windows 4]

Prints the seconds of `crepe.prune` and `crepe.evaluate` of the alias `llama` either way, and both perplexities. On a
CPU with AVX-512 both ways are the same.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import crepe
from crepe.models import wide


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--text", required=True)
    parser.add_argument("--test", required=True)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--windows", type=int, default=4)
    given = parser.parse_args()
    as_it_is = wide._fast
    for what in ("torch's products", "in float32"):
        wide._fast = as_it_is if what == "in float32" else lambda device: True  # type: ignore[assignment]
        with tempfile.TemporaryDirectory() as place:
            folder, started = Path(place) / "pruned", time.perf_counter()
            crepe.prune("llama", folder, samples=given.samples, seqlen=512, calibration=given.text)
            pruned, started = time.perf_counter() - started, time.perf_counter()
            found = crepe.evaluate(
                str(folder), reference="llama", data=given.test, seqlen=512, max_windows=given.windows
            )
        ppl = f"{found['token_perplexity']:.3f}, dense {found['reference_token_perplexity']:.3f}"
        print(
            f"{what}: prune {pruned:.1f} s, evaluate {time.perf_counter() - started:.1f} s, perplexity {ppl}",
            flush=True,
        )


if __name__ == "__main__":
    main()
