"""README.md and report.html of an output folder, made from what lies in it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from crepe.errors import CrepeError


def write_report(folder: Path) -> Path:
    """Write the card and the report again from crepe.json and evaluation.json; returns the report's path.

    Raises:
        CrepeError: the folder is no output of `crepe prune`.
    """
    from crepe.checkpoint.card import card
    from crepe.report.html import page

    manifest = read_manifest(folder)
    path = folder / "evaluation.json"
    evaluation = json.loads(path.read_text()) if path.is_file() else None
    (folder / "README.md").write_text(card(manifest, evaluation))
    (folder / "report.html").write_text(page(manifest, evaluation))
    return folder / "report.html"


def read_manifest(folder: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads((folder / "crepe.json").read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise CrepeError(f"{folder} is no output of crepe prune: crepe.json is missing or broken ({error})") from error
    return content
