"""README.md and report.html of an output folder, made from what lies in it."""

from __future__ import annotations

import json
from pathlib import Path

from crepe.checkpoint.manifest import read_manifest


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
    if manifest.get("kind") == "image-classification":
        from crepe.vision.card import card, page
    (folder / "README.md").write_text(card(manifest, evaluation))
    (folder / "report.html").write_text(page(manifest, evaluation))
    return folder / "report.html"
