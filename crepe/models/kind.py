"""Whether a name stands for an image model or a language model: decided by structure, in this one place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

# Endings of classes whose encoder is what they are kept for; any other head must not be lost.
_ENCODERS = ("Model", "ForPreTraining")
# What the config of a model has that reads or writes words, or reads films.
_OTHERS = {"vocab_size", "text_config", "llm_config", "language_config", "thinker_config", "num_frames"}


def is_image_model(asked: str, revision: str | None = None) -> bool:
    """True for aliases of nets, and for folders and Hub models whose config names an image classifier or encoder.

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
    """config: the content of a config.json. `net` is crepe's own, `architecture` with `pretrained_cfg` is timm's; an
    encoder of images, such as a masked autoencoder, has a size of images and neither words nor frames."""
    names = config.get("architectures") or ()
    timm = "pretrained_cfg" in config and "architecture" in config
    headless = bool(names) and all(name.endswith(_ENCODERS) for name in names)
    others = _OTHERS & config.keys()
    # Some encoders of images count visual words, which they were trained to guess.
    alone = not others or (others == {"vocab_size"} and all(map(_takes_images, names)))
    encoder = headless and {"image_size", "hidden_size"} <= config.keys() and alone
    return "net" in config or timm or encoder or any("ForImageClassification" in name for name in names)


def _takes_images(name: str) -> bool:
    """Whether a class of transformers is given pixels, and not words, first."""
    import transformers

    return getattr(getattr(transformers, name, None), "main_input_name", "") == "pixel_values"


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
