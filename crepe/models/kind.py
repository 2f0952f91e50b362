"""Whether a name stands for an image classifier or a language model: decided by structure, in this one place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def is_image_model(asked: str, revision: str | None = None) -> bool:
    """True for aliases of nets, and for folders and Hub models whose config names an image classifier.

    Raises:
        CrepeError, UsageError: the name stands for nothing (from `crepe.models.resolve`).
    """
    from crepe.models.resolve import aliases, resolve

    entry = aliases().get(asked)
    if entry is not None:
        return "net" in entry
    path = Path(asked).expanduser()
    if path.suffix == ".gguf" or (path.is_dir() and not (path / "config.json").is_file()):
        return False
    folder = path if path.is_dir() else resolve(asked, revision, weights=False).folder
    return is_image_config(_read(folder / "config.json"))


def is_image_config(config: dict[str, Any]) -> bool:
    """config: the content of a config.json. `net` is crepe's own, `architecture` with `pretrained_cfg` is timm's."""
    names = config.get("architectures") or ()
    timm = "pretrained_cfg" in config and "architecture" in config
    return "net" in config or timm or any(name.endswith("ForImageClassification") for name in names)


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
