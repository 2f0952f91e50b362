"""Plots as SVG text, the same bytes for the same numbers."""

from __future__ import annotations

import io
from collections.abc import Sequence

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
