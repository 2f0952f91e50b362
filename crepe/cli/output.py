"""Results go to stdout: one JSON object, or lines for people."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any


def emit(as_json: bool, result: dict[str, Any], lines: Sequence[str]) -> None:
    sys.stdout.write(json.dumps(result, default=str) + "\n" if as_json else "\n".join(lines) + "\n")


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of text with aligned columns; the first row is the header."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return [lines[0], "  ".join("-" * width for width in widths), *lines[1:]]


def megabytes(size: float) -> str:
    """A size in bytes for people, three digits."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= 0.9995 * scale:  # else three digits of it would be 1e+03 of the smaller unit
            return f"{size / scale:.3g} {unit}"
    return f"{size:.0f} B"
