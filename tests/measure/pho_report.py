"""Markdown tables and scatter plots from what pho.py measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy
from pho import PATTERNS, Lines, _points
from scipy.stats import spearmanr

_DRAWS = 2000


def report(folder: Path, seed: int) -> None:
    """Print every table for which there are measurements; write one scatter plot per pattern into `folder`."""
    points = Lines(folder / f"points-{seed}.jsonl")
    values = {(p, s): _values(folder, points, seed, p, s) for p, s in PATTERNS}
    values = {pair: found for pair, found in values.items() if len(found.get("other", ())) >= 60}
    if values:
        _correlations(values)
    _costs(Lines(folder / f"proxies-{seed}.jsonl"))
    _sampling(Lines(folder / f"sampling-{seed}.jsonl"), values)
    _ablation(Lines(folder / "ablation.jsonl"))
    _samplers(Lines(folder / "samplers.jsonl"))
    _gap(Lines(folder / "gap.jsonl"))
    for (pattern, sparsity), found in values.items():
        _scatter(folder / f"pho-{pattern.replace(':', '-')}-{sparsity:.0%}.svg".replace("%", ""), found)


def _values(folder: Path, points: Lines, seed: int, pattern: str, sparsity: float) -> dict[str, Any]:
    """Every number by name, over the random points; index 0, plain RIA, is left out."""
    lines = [points.found.get((pattern, sparsity, i)) for i in range(1, len(_points(seed)))]
    done = [i for i, line in enumerate(lines) if line]
    present = [line for line in lines if line]
    keys = [key for key in ("other", "kl", "ppl") if present and key in present[0]]
    found = {key: numpy.array([line[key] for line in present]) for key in keys}
    for key, line in Lines(folder / f"proxies-{seed}.jsonl").found.items():
        if key[:2] == (pattern, sparsity):
            found[key[2]] = numpy.array(line["values"])[1:][done]
    return found


def _correlations(values: dict[tuple[str, float], dict[str, Any]]) -> None:
    names = [name for name in next(iter(values.values())) if name != "other"]
    print("| proxy |", " | ".join(f"{_label(*k)} | better half" for k in values), "|")
    print("|---|" + "---|" * (2 * len(values)))
    for name in sorted(names, key=lambda n: -min(_rho(v[n], v["other"]) for v in values.values())):
        cells = []
        for found in values.values():
            good = found["other"] <= numpy.median(found["other"])
            low, high = _interval(found[name], found["other"])
            cells.append(f"{_rho(found[name], found['other']):.2f} ({low:.2f} to {high:.2f})")
            cells.append(f"{_rho(found[name][good], found['other'][good]):.2f}")
        print(f"| {name} |", " | ".join(cells), "|")
    print()
    print("points:", {_label(*k): len(v["other"]) for k, v in values.items()})


def _label(pattern: str, sparsity: float) -> str:
    return f"{sparsity:.0%}" if pattern == "unstructured" else pattern


def _rho(x: Any, y: Any) -> float:
    return float(spearmanr(x, y).statistic)


def _interval(x: Any, y: Any) -> tuple[float, float]:
    """95 % percentile bootstrap over the points."""
    source = numpy.random.default_rng(0)
    draws = [source.integers(len(x), size=len(x)) for _ in range(_DRAWS)]
    low, high = numpy.percentile([_rho(x[d], y[d]) for d in draws], [2.5, 97.5])
    return float(low), float(high)


def _costs(lines: Lines) -> None:
    print("\n| proxy | seconds to prepare | seconds per trial |\n|---|---|---|")
    for key, line in lines.found.items():
        if key[:2] == ("unstructured", 0.5):
            print(f"| {key[2]} | {line['prepare']:.1f} | {line['trial']:.3f} |")


def _sampling(lines: Lines, values: dict[tuple[str, float], dict[str, Any]]) -> None:
    print("\n| pattern | weights per matrix | rank correlation with all | with perplexity | seconds per trial |")
    print("|---|---|---|---|---|")
    for (pattern, sparsity, entries), line in lines.found.items():
        found, whole = numpy.array(line["values"])[1:], lines.found.get((pattern, sparsity, 10**9))
        against = f"{_rho(found, numpy.array(whole['values'])[1:]):.3f}" if whole else "not measured"
        other = values.get((pattern, sparsity), {}).get("other", ())
        rho = f"{_rho(found, other):.2f}" if len(other) == len(found) else "not measured"
        count = "all" if entries == 10**9 else f"{entries:,}"
        print(f"| {_label(pattern, sparsity)} | {count} | {against} | {rho} | {line['trial']:.3f} |")


def _ablation(lines: Lines) -> None:
    labels = list(dict.fromkeys(key[2] for key in lines.found if key[2] != "base"))
    print("\n| score |", " | ".join(_label(*k) for k in PATTERNS), "|\n|---|" + "---|" * len(PATTERNS))
    for label in labels:
        cells = [lines.found.get((*k, label)) for k in PATTERNS]
        print(f"| {label} |", " | ".join(f"{c['other']:.2f}" if c else "not measured" for c in cells), "|")
    for k in PATTERNS:
        base = lines.found.get((*k, "base"))
        if base:
            print(f"{_label(*k)}: row {base['row']:.3f}, column {base['column']:.3f}, a {base['activation']:.3f}")


def _scatter(path: Path, found: dict[str, Any]) -> None:
    """Perplexity against each proxy, side by side."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    names = [name for name in ("fisher", "kl", "ppl", "block", "recon", "gini") if name in found]
    figure = Figure(figsize=(3 * len(names), 3), layout="constrained")
    for i, name in enumerate(names):
        axes = figure.add_subplot(1, len(names), i + 1)
        axes.scatter(found[name], found["other"], s=9, color="#b5651d")
        axes.set_title(f"{name}: {_rho(found[name], found['other']):.2f}", fontsize=9)
        axes.set_yscale("log")
        axes.tick_params(labelsize=7)
        axes.spines[["top", "right"]].set_visible(False)
    FigureCanvasSVG(figure)
    with rc_context({"svg.hashsalt": "crepe"}):  # equal numbers, equal bytes
        figure.savefig(path, format="svg", metadata={"Date": None})


def _samplers(lines: Lines) -> None:
    print("\n| sampler |", " | ".join(f"{p} {s}" for p, s in dict.fromkeys(k[:2] for k in lines.found)), "|")
    for name in dict.fromkeys(key[2] for key in lines.found):
        cells = [
            ", ".join(f"{lines.found[*pair, name, number]['value']:.4f}" for number in range(3))
            for pair in dict.fromkeys(key[:2] for key in lines.found)
        ]
        print(f"| {name} |", " | ".join(cells), "|")


def _gap(lines: Lines) -> None:
    """Perplexities, and the share of the gap from RIA to the best point of the trials that is left."""
    print("| pattern | text | RIA | 200 trials of perplexity | shipped | gap left |")
    print("|---|---|---|---|---|---|")
    for pattern, sparsity in dict.fromkeys(key[:2] for key in lines.found):
        names = ("RIA", "200 trials of perplexity", "shipped")
        for text in ("held", "other"):
            ria, best, ours = (lines.found[pattern, sparsity, name][text] for name in names)
            cells = [_label(pattern, sparsity), text, *(f"{value:.2f}" for value in (ria, best, ours))]
            print("|", " | ".join([*cells, f"{(ours - best) / (ria - best):.2f}"]), "|")
