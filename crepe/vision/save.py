"""The output folder of a pruned image model: weights, a config that knows the shapes, and what was done."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from crepe.checkpoint.files import save_tensors
from crepe.checkpoint.manifest import FORMAT, package_version, published
from crepe.checkpoint.section import extend_config
from crepe.errors import CrepeError
from crepe.models.load import quiet
from crepe.vision.load import auto_class, build
from crepe.vision.native import native_config
from crepe.vision.preprocess import Preprocessor
from crepe.vision.shapes import changed, shapes_of
from crepe.vision.source import ATTRIBUTES, SHAPES, ImageSource

# A name for the weights at which plain transformers stops, and which its error prints (see crepe.checkpoint.section).
_GUARD = "none, because only crepe can read these widths: pip install crepe-prune, then crepe.load"
_PACKAGES = ("crepe-prune", "torch", "transformers", "torch-pruning", "accelerate", "safetensors")


@dataclass(frozen=True)
class ImageReport:
    """One pruned tensor. shape: dense; zeros: weights removed or zeroed, of total."""

    shape: list[int]
    pattern: str
    zeros: int
    total: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def save_image_model(
    work: Path, model: nn.Module, source: ImageSource, preprocess: Preprocessor, about: dict[str, Any]
) -> Path:
    """Write everything below `work/final` and return that folder."""
    final = work / "final"
    shutil.rmtree(final, ignore_errors=True)
    final.mkdir(parents=True)
    model = model.to("cpu").eval()
    shapes = changed(shapes_of(build(source)), shapes_of(model))
    try:
        native = _save_weights(model, source, shapes, _attributes(source, about["result"].attributes), final)
        preprocess.save(final)
        if about["recipe"].onnx:
            from crepe.vision.onnx import export

            about["result"].notes.append(export(model, preprocess, final / "model.onnx"))
        content = image_manifest(source, about, {} if native else shapes) | {"native": native}
        if native:
            content["auto_class"] = auto_class(model.config).__name__
        (final / "crepe.json").write_text(json.dumps(content, indent=2) + "\n")
        _describe(final)
    except OSError as error:
        raise CrepeError(f"cannot write {final}: {error}; free some space and go on with --resume") from error
    return final


def _attributes(source: ImageSource, new: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """What modules hold beside their weights: from the folder that was pruned further, and from this run."""
    earlier = source.config.get(ATTRIBUTES) or {}
    return {name: {**earlier.get(name, {}), **new.get(name, {})} for name in {**earlier, **new}}


def _save_weights(
    model: Any, source: ImageSource, shapes: dict[str, list[int]], attributes: dict[str, Any], final: Path
) -> bool:
    """Weights and config.json; returns whether plain transformers can load them."""
    if source.net is not None:
        spec = {"net": source.net.name, "arguments": source.net.arguments, SHAPES: shapes, ATTRIBUTES: attributes}
        (final / "config.json").write_text(json.dumps(spec, indent=2) + "\n")
        save_tensors(final / "model.safetensors", model.state_dict())
        return False
    native = None if attributes else native_config(model, shapes)
    if native is not None:
        for key in (SHAPES, ATTRIBUTES):  # of an earlier cut that the config could not say
            native.__dict__.pop(key, None)
        model.config = native
        with quiet():
            model.save_pretrained(final)
        return True
    # A config that cannot say these widths: the shapes are written into it, and the names are those in memory.
    setattr(model.config, SHAPES, shapes)
    setattr(model.config, ATTRIBUTES, attributes)
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(final)
    extend_config(final, {"transformers_weights": _GUARD})
    save_tensors(final / "model.safetensors", model.state_dict())
    return False


def image_manifest(source: ImageSource, about: dict[str, Any], shapes: dict[str, list[int]]) -> dict[str, Any]:
    """The content of crepe.json. Timings and peak memory are the only entries that differ between equal runs."""
    recipe, result, images = about["recipe"], about["result"], about["images"]
    calibration = {"source": published(recipe.calibration), "images": len(images)} if images is not None else None
    return {
        "format": FORMAT,
        "kind": "image-classification",
        "recipe": {key: published(value) for key, value in recipe.result_fields.items()},
        "versions": {name: package_version(name) for name in _PACKAGES},
        "base_model": {
            "name": source.source.name,
            "asked": published(source.source.asked),
            "revision": source.source.revision,
            "licence": source.source.licence,
        },
        "calibration": calibration,
        "seed": recipe.seed,
        "sparsity": result.sparsity,
        "parameters": {"dense": result.parameters[0], "pruned": result.parameters[1]},
        "macs": {"dense": result.macs[0], "pruned": result.macs[1]},
        "layers": result.layers,
        "shapes": shapes,
        "row_orders": result.row_orders,
        "tensors": {name: report.to_dict() for name, report in result.tensors.items()},
        "training": result.training,
        "skipped": result.skipped,
        "notes": result.notes,
        "fingerprint": about["fingerprint"],
        "timings": {"seconds": result.seconds},
        "peak_memory_bytes": result.peak_memory_bytes,
    }


def _describe(final: Path) -> None:
    from crepe.report.folder import write_report

    write_report(final)
