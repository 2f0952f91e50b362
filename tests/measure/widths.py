"""Where the time of a narrow network goes: ResNet-56 with other widths inside its blocks, dense beside cut, in turns.

    python tests/measure/widths.py --folder DIR

The weights are random: a forward takes as long whatever they are. One thread; run it alone on the machine.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from crepe.eval import latency
from crepe.vision.cost import macs
from crepe.vision.nets.cifar_resnet import CifarResNet
from crepe.vision.onnx import write

# Channels inside the blocks of the three stages; first what REPrune at 40 % of the multiply-accumulates leaves.
WIDTHS = [(6, 13, 26), (6, 16, 24), (8, 16, 32), (7, 16, 16), (8, 16, 16), (16, 16, 16), (4, 16, 32), (8, 8, 16)]


def narrowed(widths: tuple[int, ...]) -> Any:
    """A ResNet-56 whose blocks have these widths inside."""
    model = CifarResNet(56)
    for stage, width in zip((model.layer1, model.layer2, model.layer3), widths, strict=True):
        for block in stage:  # type: ignore[union-attr]
            first, second = block.conv1, block.conv2
            block.conv1 = nn.Conv2d(first.in_channels, width, 3, first.stride, 1, bias=False)
            block.bn1 = nn.BatchNorm2d(width)
            block.conv2 = nn.Conv2d(width, second.out_channels, 3, 1, 1, bias=False)
    return model.eval()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, required=True)
    given = parser.parse_args()
    torch.manual_seed(0)
    latency.BATCHES = (1, 64)
    dense, example = CifarResNet(56).eval(), torch.randn(2, 3, 32, 32)
    for widths in WIDTHS:
        model = narrowed(widths)
        with tempfile.TemporaryDirectory() as place:
            write(model, example, Path(place) / "pruned.onnx")
            found = latency.compare(model, dense, example, Path(place) / "pruned.onnx")
        for line in found:
            about = {"widths": widths, "macs": macs(model, example[:1]) / macs(dense, example[:1])}
            line |= {**about, "faster": line["dense"] / line["pruned"], "date": time.strftime("%Y-%m-%d")}
            with (given.folder / "widths.jsonl").open("a") as file:
                file.write(json.dumps(line) + "\n")
            print(widths, f"{about['macs']:.3f}", line["what"], line["batch"], f"{line['faster']:.2f}", flush=True)


if __name__ == "__main__":
    main()
