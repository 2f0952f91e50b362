"""Image models: what each method costs in accuracy, and what the smaller network gains in time.

    python tests/measure/vision.py STAGE --data FOLDER --weights resnet56.safetensors --folder DIR [--epochs N]

Stages, each writing JSON lines into DIR and going on where it was stopped:
  base      the dense ResNet-56 tuned on the images of FOLDER: what all others start from
  filters   REPrune, l2, FPGM and Torch-Pruning's own l2 and FPGM at 40 % of the multiply-accumulates, and the dense
            network, all trained for the same number of epochs
  latency   the dense and the sliced network of `filters`, in turns
  one-shot  EfficientNet-Lite0 without fine-tuning: taps (DEPrune), column blocks (BCBP), filters
  report    Markdown tables

FOLDER holds cifar10-train.parquet, cifar10-test.parquet and imagenet-sample-500.parquet. The test images are used for
the numbers that are printed and for nothing else: the best epoch is chosen on images held back from the training ones.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

MACS = 0.4
TUNING = {"finetune": 2, "learning_rate": 0.02, "batch_size": 64}


class Lines:
    """Measurements by name, one JSON line each."""

    def __init__(self, folder: Path, stage: str) -> None:
        self.path = folder / f"{stage}.jsonl"
        text = self.path.read_text() if self.path.is_file() else ""
        self.found = {line["case"]: line for line in map(json.loads, text.splitlines())}

    def add(self, case: str, **line: Any) -> None:
        self.found[case] = {"case": case, "date": time.strftime("%Y-%m-%d"), **line}
        with self.path.open("a") as file:
            file.write(json.dumps(self.found[case]) + "\n")
        print(json.dumps(self.found[case]), flush=True)


def base(given: argparse.Namespace) -> None:
    """Tune the dense network; its weights go to base.safetensors."""
    lines = Lines(given.folder, "base")
    model, preprocess = _open(given.weights)
    if "original" not in lines.found:
        lines.add("original", accuracy=_accuracy(model, preprocess, given))
    if "tuned" not in lines.found:
        history = _train(model, preprocess, given, TUNING, given.folder / "base-work")
        _save(model, given.folder / "base.safetensors")
        lines.add("tuned", accuracy=_accuracy(model, preprocess, given), history=history, **TUNING)


def filters(given: argparse.Namespace) -> None:
    """Every way to choose filters, from the tuned network, at the same widths; then all are trained alike."""
    lines = Lines(given.folder, "filters")
    how = {**TUNING, "finetune": given.epochs}
    for case in ("reprune", "torch-pruning l2", "dense", "torch-pruning fpgm", "l2", "fpgm"):
        if case in lines.found or (given.cases and case not in given.cases.split(",")):
            continue
        model, preprocess = _open(given.folder / "base.safetensors")
        before = _macs(model, preprocess)
        if case.startswith("torch-pruning"):
            _cut_by_torch_pruning(model, preprocess, case.split()[1])
        elif case != "dense":
            _cut(model, preprocess, case)
        raw = _accuracy(model, preprocess, given)
        history = _train(model, preprocess, given, how, given.folder / f"{case.replace(' ', '-')}-work")
        share = _macs(model, preprocess) / before
        _save(model, given.folder / f"{case.replace(' ', '-')}.safetensors")
        found = _accuracy(model, preprocess, given)
        lines.add(case, macs=share, untrained=raw, accuracy=found, history=history, **how)


def _macs(model: Any, preprocess: Any) -> int:
    from crepe.vision.cost import macs
    from crepe.vision.preprocess import example_input

    return macs(model, example_input(preprocess))


def _cut(model: Any, preprocess: Any, method: str) -> Any:
    """Cut `model` in place; the layers with the channels that stayed."""
    import crepe
    from crepe.vision.preprocess import example_input

    return crepe.prune(model, example=example_input(preprocess), method=method, macs=MACS).layers


def _cut_by_torch_pruning(model: Any, preprocess: Any, name: str) -> None:
    """The widths that crepe would choose, the filters that Torch-Pruning's importance function ranks highest."""
    import copy

    import torch_pruning
    from crepe.vision.preprocess import example_input

    layers = _cut(copy.deepcopy(model), preprocess, "l2")
    make = {"l2": torch_pruning.importance.GroupMagnitudeImportance, "fpgm": torch_pruning.importance.FPGMImportance}
    importance = make[name](p=2)
    model.requires_grad_(True)
    graph = torch_pruning.DependencyGraph().build_dependency(model, example_input(preprocess))
    for path, about in layers.items():
        layer = model.get_submodule(path)
        remove = torch_pruning.prune_conv_out_channels
        scores = importance(graph.get_pruning_group(layer, remove, idxs=list(range(about["channels"]))))
        worst = scores.argsort(stable=True)[: about["channels"] - len(about["kept"])]
        graph.get_pruning_group(layer, remove, idxs=sorted(worst.tolist())).prune()


def _open(weights: str | Path) -> tuple[Any, Any]:
    from crepe.vision.load import load_image_model

    return load_image_model("resnet56-cifar10", weights=str(weights))


def _train(model: Any, preprocess: Any, given: argparse.Namespace, how: dict[str, Any], work: Path | None) -> Any:
    from crepe.recipe import Recipe
    from crepe.vision.images import read_images
    from crepe.vision.train import finetune

    if work is not None:
        work.mkdir(exist_ok=True)
    images = read_images(str(given.data / "cifar10-train.parquet"), "calibration")
    model.requires_grad_(True)
    return finetune(model, images, preprocess, Recipe(model="x", **how), {}, torch.device("cpu"), work)


def _accuracy(model: Any, preprocess: Any, given: argparse.Namespace) -> float:
    from crepe.eval.images import accuracy
    from crepe.vision.images import read_images

    images = read_images(str(given.data / "cifar10-test.parquet"))
    return float(accuracy(model.eval(), preprocess, images, torch.device("cpu"))["accuracy"])


def _save(model: Any, path: Path) -> None:
    from safetensors.torch import save_file

    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, path)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("stage", choices=["base", "filters"])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--weights")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--cases")
    parser.add_argument("--epochs", type=int, default=3)
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    {"base": base, "filters": filters}[given.stage](given)


if __name__ == "__main__":
    main()
