"""What the bytes of a result depend on, so that a run is resumed only as what it was begun."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch

from crepe.errors import UsageError
from crepe.models.resolve import Source
from crepe.pipeline import distributed
from crepe.recipe import Recipe


def run_fingerprint(recipe: Recipe, source: Source, device: torch.device) -> dict[str, Any]:
    """Everything that the bytes of the result depend on, as flat names that an error can print."""
    from crepe.checkpoint.manifest import package_version

    given = recipe_entries(recipe)
    for key in ("calibration", "coefficients", "weights"):
        value = getattr(recipe, key)
        path = Path(value or "").expanduser()
        if path.is_file():
            with path.open("rb") as file:
                given[f"file.{key}"] = hashlib.file_digest(file, "sha256").hexdigest()
    given["recipe.device"] = device.type
    packages = {f"version.{name}": package_version(name) for name in ("torch", "transformers", "crepe-prune")}
    return {
        **given,
        **packages,
        "model": model_fingerprint(source.folder, source.gguf),
        "ranks": distributed.world_size(),
    }


def recipe_entries(recipe: Recipe) -> dict[str, Any]:
    """What decides the result, by flat names, as JSON gives it back."""
    from crepe.checkpoint.manifest import published

    fields = recipe.result_fields.items()
    return {f"recipe.{key}": list(v) if isinstance(v, tuple) else published(v) for key, v in fields}


def first_change(recorded: dict[str, Any], wanted: dict[str, Any]) -> str | None:
    """The name of the first entry, in alphabetical order, in which two fingerprints differ."""
    names = sorted(recorded.keys() | wanted.keys())
    return next((name for name in names if recorded.get(name) != wanted.get(name)), None)


def refuse_if_changed(recorded: dict[str, Any], wanted: dict[str, Any], place: Path) -> None:
    """Raises UsageError naming the first entry in which two fingerprints differ."""
    key = first_change(recorded, wanted)
    if key is not None:
        raise UsageError(
            f"cannot resume {place}: {key} was {recorded.get(key)!r} and is now {wanted.get(key)!r}; "
            "give the old value, or start again with --overwrite"
        )


def model_fingerprint(folder: Path, gguf: str | None) -> str:
    """A digest of the model's files: names, sizes, headers and samples of the content, and config.json whole.

    Samples instead of all bytes, because hashing a 140 GB model would take longer than pruning a small one.
    """
    digest = hashlib.sha256()
    files = [folder / gguf] if gguf else sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin")])
    for path in [*files, folder / "config.json"]:
        if path.is_file():
            digest.update(f"{path.name}:{path.stat().st_size}".encode())
            _sample(path, digest)
    return digest.hexdigest()


def _sample(path: Path, digest: Any, pieces: int = 256, size: int = 4096) -> None:
    length = path.stat().st_size
    with open(path, "rb") as file:
        digest.update(file.read(65536))
        for i in range(pieces):
            file.seek(length * i // pieces)
            digest.update(file.read(size))
