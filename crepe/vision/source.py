"""From what the user typed after --model to an image model's files: alias of a net, folder or Hub id."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from crepe.errors import CrepeError, UsageError
from crepe.models.resolve import Source, aliases, resolve
from crepe.vision.preprocess import Preprocessor, Steps, read_preprocessor

SHAPES = "crepe_shapes"
ATTRIBUTES = "crepe_attributes"


@dataclass(frozen=True)
class NetSpec:
    """A net of `crepe.vision.nets` with its arguments."""

    name: str
    arguments: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ImageSource:
    """A resolved image model. source: how it is called and where it lies; net: crepe's own definition, None for a
    Hugging Face model; weights: one file with all weights, None where the folder holds them as Hugging Face does."""

    source: Source
    net: NetSpec | None
    weights: Path | None
    config: dict[str, Any]
    image: dict[str, Any] | None = None

    def preprocessor(self) -> Preprocessor:
        return Steps.parse(self.image) if self.image is not None else read_preprocessor(self.source.folder)

    def __str__(self) -> str:
        return str(self.source) if self.weights is None else f"{self.source.name} from {self.weights}"


def resolve_image(asked: str, weights: str | None = None, revision: str | None = None) -> ImageSource:
    """Raises CrepeError where weights are missing, UsageError where --weights cannot be used."""
    entry = aliases().get(asked)
    if entry is not None:
        return _alias(asked, entry, weights)
    source = resolve(asked, revision)
    config = json.loads((source.folder / "config.json").read_text())
    file = _weight_file(weights) if weights else None
    if "net" in config:
        spec = NetSpec(config["net"], config.get("arguments", {}))
        return ImageSource(source, spec, file or source.folder / "model.safetensors", config)
    return ImageSource(source, None, file, config)


def _alias(asked: str, entry: dict[str, Any], weights: str | None) -> ImageSource:
    file = _weight_file(weights) if weights else _packaged(asked, entry)
    source = Source(asked, asked, file.parent, licence=entry.get("licence"))
    return ImageSource(source, NetSpec(entry["net"], entry["arguments"]), file, {}, entry["image"])


def _weight_file(weights: str) -> Path:
    path = Path(weights).expanduser()
    if path.suffix not in (".safetensors", ".pth", ".pt", ".bin"):
        raise UsageError(f"--weights {weights}: expected a .safetensors file, or an old .pth state dict")
    if not path.is_file():
        raise CrepeError(f"no weights at {weights!r}: check the path")
    return path


def _packaged(asked: str, entry: dict[str, Any]) -> Path:
    """The weight file inside an installed package."""
    if "package" not in entry:
        raise UsageError(
            f"{asked} is an architecture without weights: give them with --weights FILE.safetensors, those of a "
            "--reference with --reference-weights"
        )
    spec = importlib.util.find_spec(entry["package"])
    if not spec or not spec.submodule_search_locations:
        raise CrepeError(f"the weights of {asked} come in a package: {entry['install']}; or give --weights FILE")
    path = Path(spec.submodule_search_locations[0], entry["file"])
    if not path.is_file():
        raise CrepeError(f"the package {entry['package']} lacks {entry['file']}: {entry['install']}")
    return path
