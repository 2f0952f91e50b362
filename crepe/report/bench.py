"""Pictures of what `crepe bench` has measured, from the JSON that it writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from crepe.checkpoint.files import replacing
from crepe.errors import CrepeError
from crepe.report.plots import Panel, panels

CUBLAS = "F.linear"


def require_new(folder: str | Path) -> None:
    """Raises CrepeError where a measurement lies in the folder already."""
    if (Path(folder) / "bench.json").exists():
        raise CrepeError(f"{folder} holds a measurement: choose another --output")


def write_bench(folder: str | Path, result: dict[str, Any]) -> list[Path]:
    """Write bench.json and, where something was measured, bench.svg; returns their paths."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    picture = kernel_picture(result) if "cases" in result else model_picture(result)
    content = {"bench.json": json.dumps(result, indent=2, default=str) + "\n", "bench.svg": picture}
    paths = [folder / name for name, text in content.items() if text]
    for path in paths:
        with replacing(path) as fresh:
            fresh.write_text(content[path.name])
    return paths


def model_picture(result: dict[str, Any]) -> str:
    """Tokens per second of the model and its reference by batch: prefill above, decode below; the lines are the slowest
    and the fastest round. Empty where nothing was measured."""
    parts = []
    for what in dict.fromkeys(run["what"] for run in result["runs"]):
        runs = {(run["model"], run["batch"]): run["tokens_per_second"] for run in result["runs"] if run["what"] == what}
        batches = list(dict.fromkeys(batch for _, batch in runs))
        labels = {role: f"{role}: {about['name']}" for role, about in result["models"].items()}
        found = {label: [runs[role, batch] for batch in batches] for role, label in labels.items()}
        medians = {label: [rate["median"] for rate in rates] for label, rates in found.items()}
        ends = {label: [(rate["low"], rate["high"]) for rate in rates] for label, rates in found.items()}
        parts.append(Panel(what, [f"batch {batch}" for batch in batches], medians, ends))
    return panels(parts, "tokens per second") if parts else ""


def kernel_picture(result: dict[str, Any]) -> str:
    """How many times faster than cuBLAS the fastest way of every case is, and what the floor would allow.

    One panel for each operation that has cuBLAS beside it. Empty where there is none.
    """
    parts = []
    for operation in dict.fromkeys(case["operation"] for case in result["cases"]):
        cases = [case for case in result["cases"] if case["operation"] == operation and _own_ways(case)]
        if cases:
            parts.append(_operation_panel(operation, cases))
    return panels(parts, "times faster than cuBLAS", 1.0) if parts else ""


def _operation_panel(operation: str, cases: list[dict[str, Any]]) -> Panel:
    names = [f"{case['label']}, {case['shape'][0]}" for case in cases]
    times, ends, floors = [], [], []
    for case in cases:
        base, ways = case["ways"][CUBLAS]["us"], _own_ways(case)
        best = min(ways, key=lambda way: float(way["us"]))
        times.append(base / best["us"])
        ends.append((base / best["us_high"], base / best["us_low"]))
        floors.append(base / min(way["floor_us"] for way in ways))
    return Panel(f"{operation}: shape, tokens", names, {"fastest way": times}, {"fastest way": ends}, ("floor", floors))


def _own_ways(case: dict[str, Any]) -> list[dict[str, Any]]:
    """The ways that are measured against cuBLAS; none where that was not measured."""
    return [way for way in case["ways"].values() if not way["baseline"]] if CUBLAS in case["ways"] else []
