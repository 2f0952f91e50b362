"""Perplexity of methods, pipelines and calibration texts on one model, all in one run.

    python tests/measure/quality.py --model llama --calibration brown.jsonl --test wikitext2-test.txt [--windows 48]

Prints a Markdown table: token perplexity on windows of 512 tokens of the test text. Runs that need only one dense pass
share its statistics.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

import crepe
from crepe.calibration.self_text import self_rows
from crepe.calibration.text import read_corpus
from crepe.calibration.tokens import packed_rows, windows
from crepe.eval.perplexity import measure
from crepe.pipeline.dense import dense_sums
from crepe.pipeline.plan import make_plan
from crepe.pipeline.prune import prune_views
from crepe.recipe import build, choose

PATTERNS = ("unstructured", "2:4")


def collect(model: Any, rows: Tensor) -> Any:
    """Channel sums of every matrix from one dense pass."""
    plan = make_plan(model, choose(build({"model": "x"})))
    return dense_sums(model, plan, rows)


def prune_with(model: Any, sums: Any, fields: dict[str, Any]) -> None:
    choices = choose(build({"model": "x", **fields}))
    plan = make_plan(model, choices)
    prune_views(plan.views, sums, dict.fromkeys(plan.shapes, choices.sparsity), choices)


def _methods(pattern: str, sparsity: float) -> Iterator[tuple[str, dict[str, Any]]]:
    yield from (("ria", {"method": "ria"}), ("crepe", {"method": "crepe"}))
    if pattern in PATTERNS and sparsity == 0.5:
        yield from (("wanda", {"method": "wanda"}), ("magnitude", {"method": "magnitude"}))
    if pattern == "unstructured" and sparsity == 0.5:
        yield "wanda over the tensor", {"method": "wanda", "compare": "tensor"}
        yield "crepe over each row", {"compare": "row"}


class Bench:
    def __init__(self, model: str, test: str, count: int) -> None:
        self.model, self.tokenizer = crepe.load(model, dtype="bfloat16")
        self.dense = {name: p.clone() for name, p in self.model.named_parameters()}
        self.test = windows(self.tokenizer, read_corpus(test), 512, count)

    def restore(self) -> None:
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.copy_(self.dense[name])

    def report(self, label: str, pattern: str) -> None:
        found = measure(self.model, None, self.test)
        print(f"| {label} | {pattern} | {found['token_perplexity']:.2f} |", flush=True)

    def methods(self, rows: Tensor) -> None:
        sums = collect(self.model, rows)
        for pattern, sparsity in (("unstructured", 0.5), ("2:4", 0.5), ("unstructured", 0.6), ("4:8", 0.5)):
            for label, fields in _methods(pattern, sparsity):
                self.restore()
                prune_with(self.model, sums, {**fields, "pattern": pattern, "sparsity": sparsity})
                self.report(label, f"{pattern} {sparsity:.0%}")

    def pipelines(self, rows: Tensor) -> None:
        sums = collect(self.model, rows)
        for pattern in PATTERNS:
            self.restore()
            prune_with(self.model, sums, {"method": "ria", "pattern": pattern})
            self.report("ria, one pass", pattern)
            self.restore()
            crepe.prune(self.model, rows=rows, method="ria", pattern=pattern, pipeline="sequential")
            self.report("ria, sequential", pattern)

    def calibration(self, rows: Tensor) -> None:
        start = time.perf_counter()
        own = self_rows(self.model, self.tokenizer, 16, 512, 0)
        print(f"| (16 rows of its own text took {time.perf_counter() - start:.0f} s) | | |", flush=True)
        for label, which in (("text, 16 rows", rows[:16]), ("self, 16 rows", own), ("self, 4 rows", own[:4])):
            self.restore()
            sums = collect(self.model, which)
            for pattern in PATTERNS:
                self.restore()
                prune_with(self.model, sums, {"pattern": pattern})
                self.report(f"crepe, {label}", pattern)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="llama")
    parser.add_argument("--calibration", required=True)
    parser.add_argument("--test", required=True)
    parser.add_argument("--windows", type=int, default=48)
    parser.add_argument("--cases", default="methods,pipelines,calibration")
    given = parser.parse_args()
    bench = Bench(given.model, given.test, given.windows)
    rows = packed_rows(bench.tokenizer, read_corpus(given.calibration), 64, 512, 0)
    print("| score | pattern | perplexity |\n|---|---|---|", flush=True)
    bench.report("dense", "-")
    for case in given.cases.split(","):
        bench.restore()
        getattr(bench, case)(rows)


if __name__ == "__main__":
    main()
