"""What the bytes of a pruned image model depend on, so that a run is resumed only as what it was begun."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import torch

from crepe.checkpoint.manifest import package_version
from crepe.pipeline.fingerprint import model_fingerprint, recipe_entries
from crepe.recipe import Recipe
from crepe.vision.source import ImageSource

_PACKAGES = ("torch", "transformers", "torch-pruning", "pillow", "crepe-prune")


def image_fingerprint(recipe: Recipe, source: ImageSource, device: torch.device) -> dict[str, Any]:
    """Everything that the result depends on, as flat names that an error can print."""
    given = recipe_entries(recipe)
    calibration = Path(recipe.calibration).expanduser()
    files = {"calibration": calibration, "weights": source.weights}
    for key, path in files.items():
        if path is not None and path.is_file():
            with path.open("rb") as file:
                given[f"file.{key}"] = hashlib.file_digest(file, "sha256").hexdigest()
    if calibration.is_dir():
        given["folder.calibration"] = _folder_digest(calibration)
    if recipe.finetune:
        given["precision"] = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    given["recipe.device"] = device.type
    if source.weights is None:
        given["model"] = model_fingerprint(source.source.folder, None)
    return {**given, **{f"version.{name}": package_version(name) for name in _PACKAGES}}


def _folder_digest(folder: Path) -> str:
    """Of the names and sizes of all files, which is what a folder of many pictures can be asked quickly."""
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        digest.update(f"{path.relative_to(folder)}:{path.stat().st_size}\n".encode())
    return digest.hexdigest()
