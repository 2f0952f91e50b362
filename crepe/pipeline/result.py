"""What a run hands back."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import torch

from crepe.pipeline.prune import TensorReport
from crepe.pipeline.run import Runner


@dataclass
class RunResult:
    """What every run hands back. sparsity: of what was pruned; peak_memory_bytes: of this process, resident, or on the
    accelerator, where that is more."""

    output: str | None
    sparsity: float
    seconds: float
    peak_memory_bytes: int
    skipped: list[dict[str, Any]]
    source: str


@dataclass
class Result(RunResult):
    """What a run on a language model did. sparsity: achieved over the pruned tensors.

    fits: by block and block refinement, the block's error on held-out batches before and after. units: of a structured
    pattern, by block, what became of its units; sliced: how many parameters are left, and how the config says so.
    packed: sizes of a packed output and of its pruned parameters, see `crepe.checkpoint.packed.sizes_of`.
    """

    tensors: dict[str, TensorReport] = field(repr=False, default_factory=dict)
    fits: dict[str, dict[str, list[float]]] = field(repr=False, default_factory=dict)
    notes: list[str] = field(default_factory=list)
    packed: dict[str, Any] = field(repr=False, default_factory=dict)
    units: dict[str, Any] = field(repr=False, default_factory=dict)
    sliced: dict[str, Any] = field(default_factory=dict)
    model: Any = field(default=None, repr=False)

    def to_json(self) -> dict[str, Any]:
        keys = ("output", "sparsity", "seconds", "peak_memory_bytes", "skipped", "source", "notes")
        found = {key: getattr(self, key) for key in keys} | {"tensors": len(self.tensors)}
        sizes = {key: value for key, value in self.packed.items() if key != "tensors"}
        counts = {key: self.sliced[key] for key in ("parameters", "dense_parameters") if self.sliced}
        return {**found, **({"packed": sizes} if sizes else {}), **counts}


def result_of(output: str | None, done: Runner, started: float, source: str) -> Result:
    plan, reports = done.plan, done.reports
    total = sum(report.total for report in reports.values())
    zeros = sum(report.zeros for report in reports.values())
    unseen = [name for name, report in reports.items() if not report.tokens and "[" not in name]
    notes = [*plan.notes, *done.notes]
    if unseen and any(report.tokens for report in reports.values()):
        notes.append(f"{len(unseen)} matrices saw no input and were scored by their weights alone, such as {unseen[0]}")
    stuck = [name for name, report in reports.items() if report.columns == "in place" and report.pattern != "dense"]
    if "fold" in done.choices.recipe.refine and stuck:
        notes.append(
            f"{len(stuck)} matrices keep the order of their columns, such as {stuck[0]}: nothing beside them in their "
            "block produces their inputs row by row"
        )
    skipped = [{"name": s.name, "shape": list(s.shape), "reason": s.reason} for s in [*plan.skipped, *done.left]]
    seconds = time.perf_counter() - started
    return Result(
        output, zeros / total, seconds, peak_memory(), skipped, source, reports, done.fits, notes, units=done.units
    )


def peak_memory() -> int:
    """Largest resident size of this process so far, in bytes; with an accelerator, the larger of both."""
    import resource
    import sys

    scale = 1 if sys.platform == "darwin" else 1024
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale
    return max(resident, torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0)
