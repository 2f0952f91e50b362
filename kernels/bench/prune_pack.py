"""Score, select and pack as 2:4: layer by layer, and all linear layers of a 7B model.

The target for the whole model on an H200 is 10 ms; its floor, reading the weights and writing them packed, is 4.7 ms.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from crepe.kernels.bench.base import BENCHES, Case, Way
from crepe.kernels.bench.shapes import BLOCKS
from crepe.kernels.bench.weights import WEIGHT, copy, scored, selection
from crepe.kernels.dispatch import always
from crepe.kernels.operations.prune_pack import OPERATION
from crepe.kernels.reference.selection import select_n_of_m

# Read once; half of the values and a nibble for each group of four are written.
BYTES = 1.5 * WEIGHT + 1 / 8
LAYERS = 32


def cases() -> Iterator[Case]:
    yield whole_model()
    yield from selection(OPERATION, lambda outputs, inputs: (), BYTES, {"copy": copy, "torch mask": _torch_mask})


def whole_model() -> Case:
    """Every linear layer of Llama-2-7B: one block's, as many times as the model has blocks; it exceeds any cache."""
    hidden, wide = BLOCKS[0].hidden, BLOCKS[0].intermediate
    shapes = [(hidden, hidden)] * 4 + [(wide, hidden)] * 2 + [(hidden, wide)]
    count = LAYERS * sum(outputs * inputs for outputs, inputs in shapes)

    def make(device: torch.device, dtype: torch.dtype, seed: int) -> tuple[Any, ...]:
        return tuple(scored((), *shape, device, dtype, seed + 2 * place) for place, shape in enumerate(shapes))

    backend = next(backend for backend in OPERATION.backends if backend.name == "triton")
    triton = Way("triton", make, _all_layers(backend.run), _all_obstacles(backend.obstacle), int(BYTES * count), 0)
    baseline = Way("copy", make, _all_layers(copy), always, 2 * WEIGHT * count, 0, baseline=True)
    return Case(OPERATION.name, f"{BLOCKS[0].name} all linears", (0, hidden, hidden), (triton, baseline))


def _all_layers(run: Callable[..., Any]) -> Callable[..., Any]:
    def run_all(*layers: tuple[Any, ...]) -> Any:
        for _ in range(LAYERS):
            found = [run(*layer) for layer in layers]
        return found[-1]

    return run_all


def _all_obstacles(obstacle: Callable[..., str | None]) -> Callable[..., str | None]:
    return lambda *layers: next((reason for layer in layers if (reason := obstacle(*layer))), None)


def _torch_mask(values: Tensor, norm: Tensor | None, row: Tensor | None, column: Tensor | None) -> Tensor:
    """Score and selection in plain torch, without the packing."""
    return select_n_of_m(values, 2, 4, norm, row, column)


BENCHES.add("prune_pack", cases)
