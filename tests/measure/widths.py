"""Where the time of a narrow network goes: ResNet-56 with other widths inside its blocks, all of them in turns, twice.

    python tests/measure/widths.py --folder DIR

The weights are random: a forward takes as long whatever they are. One thread; run it alone on the machine.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import nn

from crepe.eval import latency
from crepe.vision.cost import macs
from crepe.vision.nets.cifar_resnet import CifarResNet
from crepe.vision.onnx import session, write

# Channels inside the blocks of the three stages; first what REPrune at 40 % of the multiply-accumulates leaves.
WIDTHS = [(6, 13, 26), (7, 16, 16), (8, 16, 32), (8, 16, 16), (16, 16, 16), (8, 8, 16), (1, 1, 1)]


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


def runs(networks: dict[str, Any], example: torch.Tensor, batch: int, folder: Path) -> dict[Any, Callable[[], object]]:
    """Every network in PyTorch, in both memory formats, and in onnxruntime."""
    pixels = example[:1].expand(batch, -1, -1, -1).contiguous()
    found: dict[Any, Callable[[], object]] = {}
    for name, model in networks.items():
        for layout, memory in latency.FORMATS.items():
            found[name, "PyTorch", layout] = latency.forward_of(model, pixels.to(memory_format=memory), memory)
        file = folder / f"{name}.onnx"
        if not file.is_file():
            write(model, example, file)
        found[name, "onnxruntime", None] = latency.onnx_run(session(file), {"pixel_values": pixels.numpy()})
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, required=True)
    given = parser.parse_args()
    torch.manual_seed(0)
    example = torch.randn(2, 3, 32, 32)
    networks = {"-".join(map(str, widths)): narrowed(widths) for widths in [(16, 32, 64), *WIDTHS]}
    work = dict(zip(networks, (macs(model, example[:1]) for model in networks.values()), strict=True))
    dense = next(iter(networks))
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        for again, batch in product((1, 2), (1, 64)):
            taken = latency.milliseconds(runs(networks, example, batch, Path(folder)), 60 if batch == 1 else 12)
            for name, what in product(networks, ("PyTorch", "onnxruntime")):
                best = {n: min(t for (own, kind, _), t in taken.items() if (own, kind) == (n, what)) for n in networks}
                line = {"widths": name, "macs": work[name] / work[dense], "what": what, "batch": batch, "run": again}
                line |= {"milliseconds": best[name], "faster": best[dense] / best[name], "date": time.strftime("%F")}
                with (given.folder / "widths.jsonl").open("a") as file:
                    file.write(json.dumps(line) + "\n")
                print(name, what, batch, f"{line['milliseconds']:.2f} ms, {line['faster']:.2f} x", flush=True)


if __name__ == "__main__":
    main()
