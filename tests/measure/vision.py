"""Image models: what each method costs in accuracy, and what the smaller network gains in time.

    python tests/measure/vision.py STAGE --data FOLDER --weights resnet56.safetensors --folder DIR [--epochs N]

Stages, each writing JSON lines into DIR and going on where it was stopped:
  base      the dense ResNet-56 tuned on the images of FOLDER: what all others start from
  filters   REPrune, l2, FPGM and Torch-Pruning's own l2 and FPGM at 40 % of the multiply-accumulates, REPrune repaired
            before training, and the dense network, all trained for the same number of epochs
  latency   the dense and the sliced network of `filters`, in turns
  one-shot  EfficientNet-Lite0 without fine-tuning: taps (DEPrune), column blocks (BCBP), filters
  command   the same by `crepe prune`: weights by what they cost, shares measured on the outputs, fits layer by layer;
            beside filters of the same share of multiply-accumulates
  report    Markdown tables

FOLDER holds cifar10-train.parquet, cifar10-test.parquet and imagenet-sample-500.parquet. The test images are used for
the numbers that are printed and for nothing else: the best epoch is chosen on images held back from the training ones.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

import crepe

MACS = 0.4
CASES = ("reprune", "torch-pruning l2", "dense", "torch-pruning fpgm", "l2", "fpgm", "reprune repaired")
CASES += ("reprune aligned",)  # the widths of the second and third stage at 16, the first makes up the rest
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
    how = {**TUNING, "finetune": given.epochs, "learning_rate": given.learning_rate, "batch_size": given.batch_size}
    how |= {"distill": given.distill} if given.distill else {}
    for case in CASES:
        name = f"{case} distilled" if given.distill else case
        if name in lines.found or (given.cases and case not in given.cases.split(",")):
            continue
        model, preprocess = _open(given.folder / "base.safetensors")
        before = _macs(model, preprocess)
        if case.startswith("torch-pruning"):
            _cut_by_torch_pruning(model, preprocess, case.split()[1])
        elif case == "reprune aligned":
            _cut_aligned(model, preprocess)
        elif case != "dense":
            method, *repair = case.split()
            _cut(model, preprocess, method, given.data if repair else None)
        raw = _accuracy(model, preprocess, given)
        history = _train(model, preprocess, given, how, given.folder / f"{name.replace(' ', '-')}-work")
        share = _macs(model, preprocess) / before
        _save(model, given.folder / f"{name.replace(' ', '-')}.safetensors")
        found = _accuracy(model, preprocess, given)
        lines.add(name, macs=share, untrained=raw, accuracy=found, history=history, device=_device_name(given), **how)


def _device_name(given: argparse.Namespace) -> str:
    return torch.cuda.get_device_name() if given.device == "cuda" else str(given.device)


def _macs(model: Any, preprocess: Any) -> int:
    from crepe.vision.cost import macs
    from crepe.vision.preprocess import example_input

    return macs(model, example_input(preprocess))


def _cut(model: Any, preprocess: Any, method: str, data: Path | None = None) -> Any:
    """Cut `model` in place, repaired on 512 training images where `data` has them; the layers with the channels that
    stayed."""
    from crepe.vision.preprocess import example_input

    repaired: dict[str, Any] = {}
    if data is not None:
        repaired = {"refine": "compensate,bn", "calibration": str(data / "cifar10-train.parquet"), "samples": 512}
        repaired["preprocess"] = preprocess
    return crepe.prune(model, example=example_input(preprocess), method=method, macs=MACS, **repaired).layers


def _cut_aligned(model: Any, preprocess: Any) -> None:
    """To the same share of the multiply-accumulates in two cuts: wide layers at multiples of 16, which onnxruntime
    runs faster (`widths.py`), then the layers that are no wider than that."""
    from crepe.vision.preprocess import example_input

    example, before = example_input(preprocess), _macs(model, preprocess)
    crepe.prune(model, example=example, method="reprune", macs=0.6, round_to=16)
    left = MACS * before / _macs(model, preprocess)
    crepe.prune(model, example=example, method="reprune", macs=left, exclude="layer2.*,layer3.*")


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


def one_shot(given: argparse.Namespace) -> None:
    """EfficientNet-Lite0 without training, half of the taps or of the point-wise weights gone.

    128 of the 500 images, drawn by seed 0, are for statistics and repairs; accuracy is over the other 372.
    """
    import copy

    from crepe.vision.graph import Graph
    from crepe.vision.load import load_image_model
    from crepe.vision.moments import input_moments
    from crepe.vision.preprocess import example_input

    lines, net = Lines(given.folder, "one-shot"), "efficientnet-lite0"
    fitting, report = _halves(given)
    model, preprocess = load_image_model(net)
    graph, convolutions = Graph(model, example_input(preprocess)), _convolutions(model, example_input(preprocess))
    pixels = [preprocess([fitting.picture(i) for i in range(start, start + 32)]) for start in range(0, 128, 32)]
    kept = _half_gone(model, convolutions)
    names = sorted({name for masks in kept.values() for name in masks})
    norms = {name: graph.norm_behind(name) for name in names}
    moments = input_moments(model, names, iter(pixels), torch.device("cpu"))
    for case, masks in {"dense": {}, **kept}.items():
        for repair in ("none", "bn", "compensate,bn") if masks else ("none",):
            name = f"{case}, {repair}"
            if name not in lines.found:
                pruned = _repaired(copy.deepcopy(model), masks, repair, moments, norms, pixels)
                share = _share(convolutions, masks)
                lines.add(name, macs=share, accuracy=_accuracy_on(pruned, preprocess, report))
    share = _share(convolutions, kept["column blocks"])
    for repair in ("bn", "compensate,bn"):
        name = f"filters by l2, {repair}"
        if name not in lines.found:
            folder = given.folder / "filters"
            fields = {"method": "l2", "macs": share, "refine": repair, "samples": 128, "overwrite": True}
            result = crepe.prune(net, folder, calibration=str(given.folder / "fitting.parquet"), **fields)
            pruned, _ = load_image_model(str(folder))
            macs = result.macs[1] / result.macs[0]
            lines.add(name, macs=macs, accuracy=_accuracy_on(pruned, preprocess, report))


COMMAND: dict[str, dict[str, Any]] = {
    "taps by cost": {"method": "deprune-obs", "refine": "sequential"},
    "taps by cost, shares measured": {"method": "deprune-obs", "refine": "sequential", "allocation": "measured"},
    "blocks by cost, shares measured": {"method": "bcbp-obs", "refine": "compensate,bn", "allocation": "measured"},
    "vectors by cost, shares measured": {
        "method": "bcbp-vector-obs",
        "refine": "compensate,bn",
        "allocation": "measured",
    },
}


def command(given: argparse.Namespace) -> None:
    """Half of the taps, or of the weights of every layer that column blocks fit, on the images of `one-shot`."""
    lines = Lines(given.folder, "command")
    _, report = _halves(given)
    for case, fields in COMMAND.items():
        if given.cases and case not in given.cases.split(";"):
            continue
        share = _by_command(lines, given, report, case, {**fields, "sparsity": 0.5})
        if not case.startswith("taps"):
            for how in ({"refine": "bn"}, {"refine": "compensate,bn"}, {"refine": "bn", "allocation": "measured"}):
                beside = f"filters beside {case}, " + ", ".join(how.values())
                _by_command(lines, given, report, beside, {**how, "method": "l2", "macs": share})


def _by_command(lines: Lines, given: argparse.Namespace, report: Any, case: str, fields: dict[str, Any]) -> float:
    """Measure one case, unless it has been; the share of multiply-accumulates that is left, zeros counted as gone."""
    from crepe.vision.load import load_image_model
    from crepe.vision.preprocess import example_input

    if case not in lines.found:
        folder = given.folder / "command"
        common = {"samples": 128, "batch_size": 16, "overwrite": True}
        calibration = str(given.folder / "fitting.parquet")
        result = crepe.prune("efficientnet-lite0", folder, calibration=calibration, **fields, **common)
        model, preprocess = load_image_model(str(folder))
        convolutions = _convolutions(model, example_input(preprocess))
        masks = {name: layer.weight != 0 for name, (layer, _) in convolutions.items()}
        macs = _share(convolutions, masks) * result.macs[1] / result.macs[0]
        found = {"macs": macs, "sparsity": result.sparsity, "seconds": result.seconds}
        lines.add(case, **found, accuracy=_accuracy_on(model, preprocess, report))
    return float(lines.found[case]["macs"])


def _halves(given: argparse.Namespace) -> tuple[Any, Any]:
    """Images to fit on (also written to fitting.parquet) and images to report on."""
    import pyarrow.parquet

    from crepe.vision.images import read_images

    source = given.data / "imagenet-sample-500.parquet"
    order = torch.randperm(500, generator=torch.Generator().manual_seed(0)).tolist()
    table = pyarrow.parquet.read_table(source)
    pyarrow.parquet.write_table(table.take(order[:128]), given.folder / "fitting.parquet")
    images = read_images(str(source))
    return images.subset(order[:128]), images.subset(order[128:])


def _convolutions(model: Any, example: torch.Tensor) -> dict[str, tuple[Any, int]]:
    """Name -> convolution and its multiply-accumulates for one image."""
    found: dict[str, tuple[Any, int]] = {}
    hooks = [
        layer.register_forward_hook(
            lambda layer, _, out, name=name: found.update({name: (layer, layer.weight.numel() * out[0, 0].numel())})
        )
        for name, layer in model.named_modules()
        if isinstance(layer, torch.nn.Conv2d)
    ]
    with torch.no_grad():
        model(example[:1])
    for hook in hooks:
        hook.remove()
    return found


def _half_gone(model: Any, convolutions: dict[str, tuple[Any, int]]) -> dict[str, dict[str, torch.Tensor]]:
    """Masks of the weights that stay, by layer: taps balanced over the whole layer and in groups of 32 channels, and
    column blocks of all point-wise layers."""
    from crepe.masks import ColBlock
    from crepe.vision.column_blocks import select_blocks
    from crepe.vision.taps import select_taps

    layers = {name: layer for name, (layer, _) in convolutions.items()}
    taps = {name: layer for name, layer in layers.items() if layer.groups > 1}
    points = {n: layer.weight.flatten(1) for n, layer in layers.items() if layer.kernel_size == (1, 1)}
    points = {name: weight.detach() for name, weight in points.items() if weight.shape[1] % 8 == 0}
    blocks, vectors = select_blocks(points, ColBlock(32, 8), 0.5, 1), select_blocks(points, ColBlock(32, 1), 0.5, 8)
    return {
        "taps unbalanced": {name: select_taps(layer.weight, 0.5, layer.groups) for name, layer in taps.items()},
        "taps balanced": {name: select_taps(layer.weight, 0.5, 32) for name, layer in taps.items()},
        "column blocks": {name: mask.reshape(layers[name].weight.shape) for name, mask in blocks.items()},
        "column vectors": {name: mask.reshape(layers[name].weight.shape) for name, mask in vectors.items()},
    }


def _repaired(model: Any, masks: Any, repair: str, moments: Any, norms: Any, pixels: Any) -> Any:
    from crepe.vision.readers import fit_to_kept
    from crepe.vision.repairs.bn import measure_again

    if "compensate" in repair:
        fit_to_kept(model, masks, {name: moments[name] for name in masks}, norms)
    for name, mask in masks.items():
        weight = model.get_submodule(name).weight
        weight.data.copy_(torch.where(mask.reshape(weight.shape), weight, torch.zeros(())))
    if "bn" in repair:
        measure_again(model, [(batch, None) for batch in pixels])
    return model.eval()


def _share(convolutions: dict[str, tuple[Any, int]], masks: Any) -> float:
    """Multiply-accumulates of the convolutions that are left."""
    whole = sum(macs for _, macs in convolutions.values())
    lost = sum(convolutions[name][1] * (1 - float(mask.float().mean())) for name, mask in masks.items())
    return 1 - lost / whole


def _accuracy_on(model: Any, preprocess: Any, images: Any) -> float:
    from crepe.eval.images import accuracy

    return float(accuracy(model.eval(), preprocess, images, torch.device("cpu"))["accuracy"])


def latency(given: argparse.Namespace) -> None:
    """The tuned ResNet-56 and its cut to 40 %, in turns: in PyTorch, each in its faster memory layout, and exported."""
    from crepe.eval import latency as measured
    from crepe.vision.onnx import write
    from crepe.vision.preprocess import example_input

    lines = Lines(given.folder, "latency")
    measured.BATCHES = (1, 64)
    dense, preprocess = _open(given.folder / "base.safetensors")
    for round_to in (1, 8):
        pruned, _ = _open(given.folder / "base.safetensors")
        example = example_input(preprocess)
        crepe.prune(pruned, example=example, method="reprune", macs=MACS, round_to=round_to)
        share = _macs(pruned, preprocess) / _macs(dense, preprocess)
        with tempfile.TemporaryDirectory() as place:
            exported = Path(place) / "pruned.onnx"
            write(pruned, example_input(preprocess, count=2), exported)
            found = measured.compare(pruned, dense, example, exported)
        for line in found:
            lines.add(f"{line['what']}, round_to {round_to}, batch {line['batch']}", macs=share, **line)


def report(given: argparse.Namespace) -> None:
    for stage in ("base", "filters", "one-shot", "command", "latency"):
        found = Lines(given.folder, stage).found
        keys = [k for k in ("macs", "untrained", "accuracy", "dense", "pruned") if any(k in f for f in found.values())]
        print(f"\n### {stage}\n\n| case |", " | ".join(keys), "|\n|---|" + "---|" * len(keys))
        for case, line in found.items():
            print(f"| {case} |", " | ".join(f"{line[key]:.4f}" if key in line else "" for key in keys), "|")


def _open(weights: str | Path) -> tuple[Any, Any]:
    from crepe.vision.load import load_image_model

    return load_image_model("resnet56-cifar10", weights=str(weights))


def _train(model: Any, preprocess: Any, given: argparse.Namespace, how: dict[str, Any], work: Path | None) -> Any:
    from crepe.models.load import parse_device
    from crepe.recipe import Recipe
    from crepe.vision.images import read_images
    from crepe.vision.train import finetune

    if work is not None:
        work.mkdir(exist_ok=True)
    images = read_images(str(given.data / "cifar10-train.parquet"), "calibration")
    model.requires_grad_(True)
    dense = _open(given.folder / "base.safetensors")[0] if "distill" in how else None
    return finetune(model, images, preprocess, Recipe(model="x", **how), {}, parse_device(given.device), work, dense)


def _accuracy(model: Any, preprocess: Any, given: argparse.Namespace) -> float:
    from crepe.eval.images import accuracy
    from crepe.models.load import parse_device
    from crepe.vision.images import read_images

    images, place = read_images(str(given.data / "cifar10-test.parquet")), parse_device(given.device)
    found = float(accuracy(model.to(place).eval(), preprocess, images, place)["accuracy"])
    model.to("cpu")
    return found


def _save(model: Any, path: Path) -> None:
    from safetensors.torch import save_file

    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, path)


def main() -> None:
    stages = {"base": base, "filters": filters, "one-shot": one_shot, "command": command, "latency": latency}
    parser = argparse.ArgumentParser()
    parser.add_argument("stage", choices=[*stages, "report"])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--weights")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--cases")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--learning-rate", type=float, default=TUNING["learning_rate"], help="of `filters`")
    parser.add_argument("--batch-size", type=int, default=TUNING["batch_size"], help="of `filters`")
    parser.add_argument("--distill", type=float, default=0.0, help="of `filters`: the dense network in the loss")
    parser.add_argument("--device", default="cpu", help="of `base` and `filters`")
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    {**stages, "report": report}[given.stage](given)


if __name__ == "__main__":
    main()
