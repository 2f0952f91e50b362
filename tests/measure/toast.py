"""ToaSt on a vision transformer: trained on CIFAR-10 here, cut to a share of its multiply-accumulates, tuned, measured.

    python tests/measure/toast.py STAGE --data FOLDER --work DIR --folder docs/results/vision [options]

Stages, which go on where they were stopped:
  train     a ViTForImageClassification for images of 32 x 32 with patches of 4, from random weights, into DIR/dense
  prune     `crepe prune --method toast` (static form) without and with fine-tuning, the published form that selects
            while the model runs, and the dense network trained for the same epochs; JSON lines into the folder
  report    a Markdown table

Accuracy is taken four times: image by image, in batches of 256 in the order of the file, shuffled, and sorted by class.
A network whose result for an image depends on the images beside it shows up as different numbers.

The defaults are for a GPU. FOLDER holds cifar10-train.parquet and cifar10-test.parquet; the test images give the
numbers that are printed and nothing else.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import crepe

BATCH = 256
STATISTICS = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def train(given: argparse.Namespace) -> None:
    from crepe.vision.preprocess import Steps

    dense = given.work / "dense"
    if (dense / "config.json").is_file():
        return
    started = time.perf_counter()
    model, preprocess = _transformer(given), Steps((32, 32), *STATISTICS)
    history = _tuned(model, preprocess, given, given.epochs, given.learning_rate, "dense-work")
    model.save_pretrained(dense)
    preprocess.save(dense)
    about = {"history": history, "seconds": round(time.perf_counter() - started)}
    (given.work / "training.json").write_text(json.dumps(about) + "\n")


def prune(given: argparse.Namespace) -> None:
    """Every case from the same dense weights; those that are measured already are left alone."""
    from crepe.vision.load import load_image_model

    found = _lines(given)
    dense = str(given.work / "dense")
    if "dense" not in found:
        _measure(given, "dense", *load_image_model(dense), training=json.loads(_text(given.work / "training.json")))
    for case, epochs in (("static, no training", 0), ("static, trained", given.tune)):
        if case not in found:
            result = crepe.prune(dense, given.work / case.replace(", ", "-"), resume=True, **_fields(given, epochs))
            _measure(given, case, *load_image_model(result.output), share=result.macs[1] / result.macs[0])
    if "dense, trained as long" not in found:
        model, preprocess = load_image_model(dense)
        _tuned(model, preprocess, given, given.tune, given.tune_rate, "dense-tuned-work")
        _measure(given, "dense, trained as long", model, preprocess)
    for case, per_image in (("run-time, by batch", False), ("run-time, by image", True)):
        if f"{case}, trained" not in found:
            _run_time(given, case, per_image)


def _fields(given: argparse.Namespace, epochs: int) -> dict[str, Any]:
    """What `crepe prune` gets as flags."""
    training = {"optimizer": "adamw", "learning_rate": given.tune_rate} if epochs else {}
    return {
        "method": "toast",
        "macs": given.macs,
        "refine": given.refine,
        "calibration": str(_file(given, "train")),
        "samples": given.samples,
        "batch_size": given.batch,
        "finetune": epochs,
        "device": given.device,
        "seed": given.seed,
        **training,
    }


def _run_time(given: argparse.Namespace, case: str, per_image: bool) -> None:
    """The heads of the static form, and as many hidden channels dropped as it drops, chosen while the model runs."""
    from crepe.vision.cost import macs
    from crepe.vision.load import load_image_model
    from crepe.vision.preprocess import example_input
    from crepe.vision.run_time import gate_hidden

    model, preprocess = load_image_model(str(given.work / "dense"))
    example = example_input(preprocess)
    before, (heads, hidden) = macs(model, example), _shares_of_static(given)
    fields = {**_fields(given, 0), "sparsity": heads, "macs": None, "exclude": "*.mlp.*", "preprocess": preprocess}
    crepe.prune(model, example=example, **{**fields, "device": "cpu"})
    gate_hidden(model, example, hidden, per_image=per_image, seed=given.seed)
    share = (macs(model, example) - hidden * _gated_macs(model, example)) / before
    found = _lines(given)
    if case not in found:
        _measure(given, case, model, preprocess, share=share)
    _tuned(model, preprocess, given, given.tune, given.tune_rate, f"run-time-{per_image}-work")
    _measure(given, f"{case}, trained", model, preprocess, share=share)


def _shares_of_static(given: argparse.Namespace) -> tuple[float, float]:
    """Shares of the dimensions of heads and of the hidden channels that the static form removed, from its manifest."""
    about = json.loads(_text(given.work / "static-no training" / "crepe.json"))
    reports, layers = about["tensors"], about["layers"].values()
    heads = [report for report in reports.values() if report["pattern"] == "head"]
    removed = sum(report["zeros"] for report in heads) / max(sum(report["total"] for report in heads), 1)
    kept = sum(len(layer["kept"]) for layer in layers) / sum(layer["channels"] for layer in layers)
    return removed, 1 - kept


def _gated_macs(model: Any, example: Tensor) -> int:
    """Multiply-accumulates of the layers that read gated channels; the first block is not gated."""
    from crepe.vision.cost import macs_by_layer

    readers = [name for name in macs_by_layer(model, example) if name.endswith("mlp.fc2")]
    return sum(macs_by_layer(model, example)[name] for name in readers[1:])


def _measure(
    given: argparse.Namespace, case: str, model: Any, preprocess: Any, share: float = 1.0, **more: Any
) -> None:
    """One line: accuracy in every way to batch the test images, and how far one image's logits depend on it."""
    from crepe.vision.images import pixels, read_images

    images = read_images(str(_file(given, "test")))
    labels = torch.tensor(images.labels)
    values = torch.cat([pixels(images, preprocess, part.tolist()) for part in torch.arange(len(images)).split(500)])
    shuffled = torch.randperm(len(images), generator=torch.Generator().manual_seed(given.seed))
    ways = {"batch_1": torch.arange(len(images)).split(1), "batch_256": torch.arange(len(images)).split(BATCH)}
    ways |= {"shuffled": shuffled.split(BATCH), "by_class": labels.argsort(stable=True).split(BATCH)}
    logits = {way: _logits(model, values, parts, given) for way, parts in ways.items()}
    line = {way: float((found.argmax(1) == labels).double().mean()) for way, found in logits.items()}
    line["predictions_that_differ"] = int((logits["batch_1"].argmax(1) != logits["batch_256"].argmax(1)).sum())
    line["largest_difference"] = float((logits["batch_1"] - logits["batch_256"]).abs().max())
    line |= {"case": case, "macs": share, "images": len(images), "date": time.strftime("%Y-%m-%d")}
    line |= {"network": _conditions(given), **more}
    given.folder.mkdir(parents=True, exist_ok=True)
    with (given.folder / "toast.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
    print(json.dumps(line), flush=True)


def _logits(model: Any, values: Tensor, parts: Iterable[Tensor], given: argparse.Namespace) -> Tensor:
    from crepe.vision.load import logits_of

    device, found = _device(given), None
    model.to(device).eval()
    with torch.inference_mode():
        for part in parts:
            logits = logits_of(model(values[part].to(device))).float().cpu()
            found = torch.zeros(len(values), logits.shape[1]) if found is None else found
            found[part] = logits
    model.to("cpu")
    assert found is not None
    return found


def _transformer(given: argparse.Namespace) -> Any:
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(given.seed)
    config = ViTConfig(
        image_size=32,
        patch_size=4,
        hidden_size=given.hidden,
        num_hidden_layers=given.depth,
        num_attention_heads=given.heads,
        intermediate_size=4 * given.hidden,
        num_labels=10,
    )
    return ViTForImageClassification(config)


def _tuned(model: Any, preprocess: Any, given: argparse.Namespace, epochs: int, rate: float, work: str) -> Any:
    """Train with crepe's own loop; returns its history."""
    from crepe.recipe import Recipe
    from crepe.vision.images import read_images
    from crepe.vision.train import finetune

    (given.work / work).mkdir(parents=True, exist_ok=True)
    images = read_images(str(_file(given, "train")), "calibration")
    how = {"finetune": epochs, "learning_rate": rate, "batch_size": given.batch, "optimizer": "adamw"}
    model.requires_grad_(True)
    recipe = Recipe(model="x", seed=given.seed, **how)
    return finetune(model, images, preprocess, recipe, {}, _device(given), given.work / work)


def _file(given: argparse.Namespace, part: str) -> Path:
    """The images of a part, or the first so many of them, written beside the models."""
    import pyarrow.parquet

    count = {"train": given.train_images, "test": given.test_images}[part]
    source = Path(given.data / f"cifar10-{part}.parquet")
    if count is None:
        return source
    short = Path(given.work / f"{part}-{count}.parquet")
    if not short.is_file():
        given.work.mkdir(parents=True, exist_ok=True)
        pyarrow.parquet.write_table(pyarrow.parquet.read_table(source).slice(0, count), short)
    return short


def _device(given: argparse.Namespace) -> torch.device:
    from crepe.models.load import parse_device

    return parse_device(given.device)


def _conditions(given: argparse.Namespace) -> dict[str, Any]:
    device = _device(given)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    keys = (
        "hidden",
        "depth",
        "heads",
        "epochs",
        "tune",
        "learning_rate",
        "tune_rate",
        "batch",
        "train_images",
        "refine",
    )
    return {key: getattr(given, key) for key in keys} | {"device": name}


def _lines(given: argparse.Namespace) -> dict[str, Any]:
    """Case -> what was measured."""
    path = given.folder / "toast.jsonl"
    return {line["case"]: line for line in map(json.loads, _text(path).splitlines())} if path.is_file() else {}


def _text(path: Path) -> str:
    return path.read_text()


def report(given: argparse.Namespace) -> None:
    ways = ("batch_1", "batch_256", "shuffled", "by_class")
    print("| network | MACs | one by one | batches of 256 | shuffled | sorted by class | other class alone |")
    print("|---|---|---|---|---|---|---|")
    for case, line in _lines(given).items():
        shares = " | ".join(f"{100 * line[way]:.2f} %" for way in ways)
        print(f"| {case} | {line['macs']:.3f} | {shares} | {line['predictions_that_differ']} of {line['images']} |")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("stage", choices=["train", "prune", "report"])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--work", type=Path, help="models and states of trainings")
    parser.add_argument("--folder", type=Path, required=True, help="where toast.jsonl is")
    for flag, kind, default in (
        ("--hidden", int, 192),
        ("--depth", int, 9),
        ("--heads", int, 6),
        ("--epochs", int, 60),
        ("--tune", int, 10),
        ("--learning-rate", float, 1e-3),
        ("--tune-rate", float, 3e-4),
        ("--batch", int, 256),
        ("--macs", float, 0.6),
        ("--samples", int, 1024),
        ("--train-images", int, None),
        ("--test-images", int, None),
        ("--refine", str, "compensate"),
        ("--device", str, "auto"),
        ("--seed", int, 0),
    ):
        parser.add_argument(flag, type=kind, default=default)
    given = parser.parse_args()
    {"train": train, "prune": prune, "report": report}[given.stage](given)


if __name__ == "__main__":
    main()
