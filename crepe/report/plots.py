"""Plots as SVG text, the same bytes for the same numbers."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

_COLOURS = ("#b5651d", "#4c72b0")


def bars(names: Sequence[str], values: Sequence[float], label: str, limit: float | None = None) -> str:
    """One bar per name; `label` is the axis with its unit."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 2.6), layout="constrained")
    axes = figure.add_subplot()
    axes.bar(range(len(values)), values, color=_COLOURS[0])
    axes.set_ylabel(label)
    axes.set_ylim(0, limit)
    _tick(axes, names)
    axes.spines[["top", "right"]].set_visible(False)
    return _svg(FigureCanvasSVG(figure))


@dataclass(frozen=True)
class Panel:
    """Bars of several series beside each other for every name.

    series: label -> a value for each name, None where there is none. spread: of the same labels, (low, high) around
    each value. marks: a line across the bars of each name, with its label.
    """

    title: str
    names: Sequence[str]
    series: Mapping[str, Sequence[float | None]]
    spread: Mapping[str, Sequence[tuple[float, float] | None]] = field(default_factory=dict)
    marks: tuple[str, Sequence[float | None]] | None = None


def panels(parts: Sequence[Panel], label: str, line: float | None = None) -> str:
    """Panels below each other, each with a scale of its own; `label` is the axis with its unit. line: a height that is
    drawn through all of them."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    widest = max(len(part.names) * len(part.series) for part in parts)
    figure = Figure(figsize=(min(40.0, max(9.0, 0.14 * widest)), 3.4 * len(parts)), layout="constrained")
    for axes, part in zip(figure.subplots(len(parts), squeeze=False)[:, 0], parts, strict=True):
        _grouped(axes, part)
        if line is not None:
            axes.axhline(line, color="black", linewidth=0.6)
        axes.set_title(part.title, fontsize=9, loc="left")
        axes.set_ylabel(label)
        axes.set_ylim(0)
        axes.set_xticks(range(len(part.names)), part.names, rotation=90, fontsize=6)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=7, loc="lower right", bbox_to_anchor=(1, 1), ncols=3)
    return _svg(FigureCanvasSVG(figure))


def _grouped(axes: Any, part: Panel) -> None:
    width = 0.8 / len(part.series)
    for i, (label, values) in enumerate(part.series.items()):
        there = [j for j, value in enumerate(values) if value is not None]
        heights = [values[j] or 0.0 for j in there]
        places = [j + (i + 0.5) * width - 0.4 for j in there]
        axes.bar(places, heights, width, color=_COLOURS[i % len(_COLOURS)], label=label)
        ends = [part.spread[label][j] or (h, h) for j, h in zip(there, heights, strict=True)] if part.spread else []
        for place, (low, high) in zip(places, ends, strict=bool(ends)):
            axes.plot([place, place], [low, high], color="black", linewidth=0.8)
    if part.marks is not None:
        label, heights_of = part.marks
        marked = [(j, height) for j, height in enumerate(heights_of) if height is not None]
        axes.hlines(
            [h for _, h in marked], [j - 0.45 for j, _ in marked], [j + 0.45 for j, _ in marked], "black", label=label
        )


def scatter(
    series: Sequence[tuple[Sequence[float], Sequence[float], str]], x_label: str, y_label: str, log_y: bool = False
) -> str:
    """Points of several series (x, y, name) on common axes."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.4), layout="constrained")
    axes = figure.add_subplot()
    for i, (x, y, name) in enumerate(series):
        axes.scatter(x, y, s=12, color=_COLOURS[i % len(_COLOURS)], label=name)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.set_yscale("log" if log_y else "linear")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    return _svg(FigureCanvasSVG(figure))


def _tick(axes: object, names: Sequence[str]) -> None:
    step = max(1, len(names) // 40)
    positions = list(range(0, len(names), step))
    axes.set_xticks(positions, [names[i] for i in positions], rotation=90, fontsize=7)  # type: ignore[attr-defined]


def _svg(canvas: object) -> str:
    import matplotlib

    text = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "crepe", "svg.fonttype": "none"}):
        canvas.figure.savefig(text, format="svg", metadata={"Date": None})  # type: ignore[attr-defined]
    return text.getvalue()[text.getvalue().index("<svg") :]
