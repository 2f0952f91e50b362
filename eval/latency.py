"""How long a network takes as it runs: dense beside pruned, each in the memory format that suits it best.

A pruned network is held against the faster of the dense network's two memory formats, so that no speed is claimed
against a slow baseline. Times are medians of single forwards on this machine.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

_REPEATS = 15
_WARM = 3
BATCHES = (1, 32)


def compare(
    pruned: nn.Module, dense: nn.Module | None, example: Tensor, onnx: Path | None = None
) -> list[dict[str, Any]]:
    """Milliseconds per forward of a batch: one line for PyTorch at each batch size, and one for ONNX where it is.

    example: pixel values (count, 3, height, width). Returns dictionaries with what, batch, device, threads, dense,
    dense_format, pruned, pruned_format; dense is None where there is no reference.
    """
    device = example.device.type
    lines = []
    for batch in BATCHES:
        pixels = example[:1].expand(batch, -1, -1, -1).contiguous()
        base = {"batch": batch, "device": device, "threads": torch.get_num_threads()}
        found = best_format(pruned, pixels)
        before = best_format(dense, pixels) if dense is not None else (None, None)
        formats = {"dense_format": before[1], "pruned_format": found[1]}
        lines.append({"what": "PyTorch", **base, "dense": before[0], "pruned": found[0], **formats})
        if onnx is not None:
            from crepe.vision.onnx import session

            running, values = session(onnx), pixels.numpy()
            taken = milliseconds(lambda r=running, v=values: r.run(None, {"pixel_values": v}))  # type: ignore[misc]
            lines.append({"what": "onnxruntime", **base, "dense": before[0], "pruned": taken, **formats})
    return lines


def best_format(model: nn.Module, pixels: Tensor) -> tuple[float, str]:
    """Milliseconds and name of the faster memory format."""
    found = {}
    for name, layout in (("contiguous", torch.contiguous_format), ("channels-last", torch.channels_last)):
        placed = model.to(memory_format=layout)  # type: ignore[call-overload]
        values = pixels.to(memory_format=layout)
        with torch.inference_mode():
            found[name] = milliseconds(lambda m=placed, v=values: m(v))  # type: ignore[misc]
    model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    name = min(found, key=lambda key: found[key])
    return found[name], name


def milliseconds(run: Callable[[], object]) -> float:
    """Median time of one call."""
    for _ in range(_WARM):
        run()
    times = []
    for _ in range(_REPEATS):
        start = time.perf_counter()
        run()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times)
