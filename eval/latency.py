"""How long a network takes as it runs: dense beside pruned, each in the memory format that suits it best.

The pruned network is held against the faster of the dense network's two memory formats, so that no speed is claimed
against a slow baseline, and the forwards of all of them alternate, so that a busy machine slows them all.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from crepe.vision.onnx import session, write

_ROUNDS = 15
_WARM = 3
BATCHES = (1, 32)
FORMATS = {"contiguous": torch.contiguous_format, "channels-last": torch.channels_last}


def compare(
    pruned: nn.Module, dense: nn.Module | None, example: Tensor, onnx: Path | None = None
) -> list[dict[str, Any]]:
    """Milliseconds per forward of a batch: one line for PyTorch at each batch size, and one for ONNX where it is.

    example: pixel values (count, 3, height, width). onnx: the pruned model's file. Returns dictionaries with what,
    batch, device, threads, dense, dense_format, pruned, pruned_format; dense is None where there is no reference.
    """
    lines = []
    models = {"pruned": pruned} if dense is None else {"pruned": pruned, "dense": dense}
    for batch in BATCHES:
        pixels = example[:1].expand(batch, -1, -1, -1).contiguous()
        base = {"batch": batch, "device": example.device.type, "threads": torch.get_num_threads()}
        lines.append({"what": "PyTorch", **base, **_in_pytorch(models, pixels)})
        if onnx is not None:
            lines.append({"what": "onnxruntime", **base, **_in_onnx(onnx, dense, pixels)})
    return lines


def _in_pytorch(models: Mapping[str, nn.Module], pixels: Tensor) -> dict[str, Any]:
    """The faster memory format of each model."""
    runs: dict[tuple[str, str], Callable[[], object]] = {}
    for name, model in models.items():
        for layout, memory in FORMATS.items():
            runs[name, layout] = forward_of(model, pixels.to(memory_format=memory), memory)
    with torch.inference_mode():
        taken = milliseconds(runs)
    found: dict[str, Any] = {"dense": None, "dense_format": None}
    for name in models:
        layout = min(FORMATS, key=lambda layout: taken[name, layout])
        found |= {name: taken[name, layout], f"{name}_format": layout}
    return found


def forward_of(model: nn.Module, pixels: Tensor, memory: torch.memory_format) -> Callable[[], object]:
    import copy

    placed = copy.deepcopy(model).eval().to(memory_format=memory)  # type: ignore[call-overload]
    return lambda: placed(pixels)


def _in_onnx(path: Path, dense: nn.Module | None, pixels: Tensor) -> dict[str, Any]:
    """The pruned model's file, and the dense model exported in the same way."""
    with TemporaryDirectory() as folder:
        running = {"pruned": session(path)}
        if dense is not None:
            other = Path(folder) / "dense.onnx"
            write(dense, pixels[:1].expand(2, -1, -1, -1).contiguous(), other)
            running["dense"] = session(other)
        values = {"pixel_values": pixels.numpy()}
        taken = milliseconds({name: onnx_run(found, values) for name, found in running.items()})
    return {"dense": None, "dense_format": None, "pruned_format": None, **taken}


def onnx_run(running: Any, values: dict[str, Any]) -> Callable[[], object]:
    return lambda: running.run(None, values)


def milliseconds(runs: Mapping[Any, Callable[[], object]], rounds: int | None = None) -> dict[Any, float]:
    """Median time of one call of each, taken in turns: `rounds` of them."""
    times: dict[Any, list[float]] = {key: [] for key in runs}
    for turn in range(_WARM + (rounds or _ROUNDS)):
        for key, run in runs.items():
            start = time.perf_counter()
            run()
            if turn >= _WARM:
                times[key].append(1000 * (time.perf_counter() - start))
    return {key: statistics.median(values) for key, values in times.items()}
