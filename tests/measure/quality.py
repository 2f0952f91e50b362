"""Perplexity of methods, pipelines and calibration texts on one model, all in one run.

    python tests/measure/quality.py --model llama --calibration brown.jsonl --test wikitext2-test.txt [--windows 32]

Prints a Markdown table: token perplexity and KL divergence on windows of 512 tokens of the test text.
"""

from __future__ import annotations

import argparse
import time
from typing import Any


def cases(names: set[str]) -> list[tuple[str, str, dict[str, Any]]]:
    """(label, which rows, recipe fields)"""
    found: list[tuple[str, str, dict[str, Any]]] = []
    for pattern in ("unstructured", "2:4"):
        if "methods" in names:
            found += [(m, "text", {"method": m, "pattern": pattern}) for m in ("magnitude", "wanda", "ria", "crepe")]
            found.append(
                ("wanda over the tensor", "text", {"method": "wanda", "pattern": pattern, "compare": "tensor"})
            )
        if "pipelines" in names:
            found.append(("crepe, sequential", "text", {"pattern": pattern, "pipeline": "sequential"}))
        if "calibration" in names:
            found += [(f"crepe, {rows} rows", rows, {"pattern": pattern}) for rows in ("text 16", "self 16", "self 64")]
    return [c for c in found if not (c[2]["pattern"] == "2:4" and "compare" in c[2])]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="llama")
    parser.add_argument("--calibration", required=True)
    parser.add_argument("--test", required=True)
    parser.add_argument("--windows", type=int, default=32)
    parser.add_argument("--cases", default="methods,pipelines,calibration")
    given = parser.parse_args()

    import torch

    import crepe
    from crepe.calibration.self_text import self_rows
    from crepe.calibration.text import read_corpus
    from crepe.calibration.tokens import packed_rows, windows
    from crepe.eval.perplexity import measure

    model, tokenizer = crepe.load(given.model, dtype="bfloat16")
    dense, _ = crepe.load(given.model, dtype="bfloat16")
    rows = {"text": packed_rows(tokenizer, read_corpus(given.calibration), 64, 512, 0)}
    rows["text 16"] = rows["text"][:16]
    chosen = set(given.cases.split(","))
    if "calibration" in chosen:
        start = time.perf_counter()
        rows["self 64"] = self_rows(model, tokenizer, 64, 512, 0)
        rows["self 16"] = self_rows(model, tokenizer, 16, 512, 0)
        print(f"writing 64 + 16 rows of its own text: {time.perf_counter() - start:.0f} s", flush=True)
    test = windows(tokenizer, read_corpus(given.test), 512, given.windows)
    print(f"dense: {measure(dense, None, test)['token_perplexity']:.2f}", flush=True)
    print("| score | pattern | perplexity | KL | seconds |\n|---|---|---|---|---|", flush=True)
    for label, which, fields in cases(chosen):
        with torch.no_grad():
            for parameter, original in zip(model.parameters(), dense.parameters(), strict=True):
                parameter.copy_(original)
        result = crepe.prune(model, rows=rows[which], **fields)
        found = measure(model, dense, test)
        print(
            f"| {label} | {fields['pattern']} | {found['token_perplexity']:.2f} | {found['kl_divergence']:.4f} "
            f"| {result.seconds:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
