"""Top-1 accuracy of an image model, alone or beside its dense reference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from crepe.errors import CrepeError, UsageError
from crepe.progress import bar
from crepe.vision.images import Images, batches, chosen, read_images, require_labels
from crepe.vision.load import logits_of
from crepe.vision.preprocess import Preprocessor

_BATCH = 64


def evaluate_images(
    model: str,
    *,
    data: str | None = None,
    weights: str | None = None,
    max_images: int | None = None,
    reference: str | None = None,
    reference_weights: str | None = None,
    latency: bool = False,
    device: str = "auto",
    save: bool = False,
) -> dict[str, Any]:
    """Accuracy on `data`, parameters and multiply-accumulates; with `reference` also its accuracy and the agreement.

    Args:
        data: image folder, .parquet file or Hub data set with labels. max_images: so many of them, chosen by seed 0.
        weights, reference_weights: files for architectures that an alias names.
        latency: also time both networks as they run, see `crepe.eval.latency`.
        save: write evaluation.json into the model's folder and make its card and report again.

    Raises:
        CrepeError: a model or images that cannot be read, labels that do not fit. UsageError: no data.
    """
    from crepe.checkpoint.manifest import published, read_manifest
    from crepe.models.load import parse_device
    from crepe.vision.cost import macs, parameters
    from crepe.vision.load import label_ids_of, load_image_model
    from crepe.vision.preprocess import example_input

    if data is None:
        raise UsageError("no images: give --data with an image folder, a .parquet file or a Hub data set")
    if save:
        read_manifest(Path(model))
    place = parse_device(device)
    opened, preprocess = load_image_model(model, weights=weights)
    dense = load_image_model(reference, weights=reference_weights) if reference else None
    example = example_input(preprocess)
    images = read_images(data, "evaluation", label_ids_of(opened))
    images = images if max_images is None else chosen(images, max_images, 0)
    costs = {"parameters": parameters(opened), "macs": macs(opened, example)}
    if dense:
        costs |= {"reference_parameters": parameters(dense[0]), "reference_macs": macs(dense[0], example)}
    found = accuracy(opened.to(place), preprocess, images, place, dense)
    result: dict[str, Any] = {
        "model": published(model),
        "reference": published(reference),
        "data": published(data),
        **found,
        **costs,
    }
    if latency:
        from crepe.eval.latency import compare

        onnx = Path(model) / "model.onnx"
        other = dense[0].to("cpu") if dense else None
        result["latency"] = compare(opened.to("cpu"), other, example, onnx if onnx.is_file() else None)
    if save:
        from crepe.eval.evaluate import save_result

        save_result(Path(model), result)
    return result


def accuracy(
    model: Any,
    preprocess: Preprocessor,
    images: Images,
    device: torch.device,
    reference: tuple[Any, Preprocessor] | None = None,
) -> dict[str, Any]:
    """Share of `images` whose most likely class is right; and that of the reference, and how often both agree.

    Raises:
        CrepeError: no labels, or labels that the model has no class for, or another number of classes.
    """
    counts = {"right": 0, "reference": 0, "same": 0}
    checked = False
    with torch.inference_mode(), bar("evaluating", len(images)) as advance:
        for pixels, labels in batches(images, preprocess, _BATCH):
            logits = logits_of(model(pixels.to(device))).cpu()
            if not checked:
                require_labels(images, logits.shape[1], "accuracy")
                checked = True
            counts["right"] += int((logits.argmax(1) == labels).sum())
            if reference is not None:
                _compare(counts, reference[0].to(device), pixels, labels, logits)
            for _ in range(len(labels)):
                advance()
    found: dict[str, Any] = {"accuracy": counts["right"] / len(images), "images": len(images)}
    if reference is not None:
        found["reference_accuracy"] = counts["reference"] / len(images)
        found["top1_agreement"] = counts["same"] / len(images)
    return found


def _compare(counts: dict[str, int], reference: Any, pixels: Tensor, labels: Tensor, logits: Tensor) -> None:
    dense = logits_of(reference(pixels.to(next(reference.parameters()).device))).cpu()
    if dense.shape != logits.shape:
        raise CrepeError(f"the reference has {dense.shape[1]} classes and the model {logits.shape[1]}")
    counts["reference"] += int((dense.argmax(1) == labels).sum())
    counts["same"] += int((dense.argmax(1) == logits.argmax(1)).sum())
