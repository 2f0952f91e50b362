"""What the benches of the pruning step share: weights with the norms of their inputs, and the layers of a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from crepe.kernels.bench.base import Case, Make, Way
from crepe.kernels.bench.shapes import BLOCKS
from crepe.kernels.dispatch import Operation, always

# Bytes of a weight: kernels are measured with 16-bit floats.
WEIGHT = 2


def weight(outputs: int, inputs: int, device: torch.device, dtype: torch.dtype, seed: int) -> tuple[Tensor]:
    generator = torch.Generator(device).manual_seed(seed)
    return (torch.randn(outputs, inputs, generator=generator, device=device, dtype=dtype),)


def scored(
    numbers: tuple[int, ...], outputs: int, inputs: int, device: torch.device, dtype: torch.dtype, seed: int
) -> tuple[Any, ...]:
    """Arguments of a selection with the score of Wanda: weight, `numbers`, norm, no row and no column."""
    norm = weight(1, inputs, device, torch.float32, seed + 1)[0][0].abs()
    return *weight(outputs, inputs, device, dtype, seed), *numbers, norm, None, None


def cases(
    operation: Operation,
    make: Callable[[int, int], Make],
    bytes_per_weight: float,
    baselines: dict[str, Callable[..., Any]],
) -> Iterator[Case]:
    """The Triton kernel of an operation beside `baselines` on every layer. make: outputs, inputs -> `Way.make`."""
    backend = next(backend for backend in operation.backends if backend.name == "triton")
    for block in BLOCKS:
        for label, outputs, inputs in block.linears():
            arguments, size = make(outputs, inputs), int(bytes_per_weight * outputs * inputs)
            ways = [Way("triton", arguments, backend.run, backend.obstacle, size, 0)]
            ways += [Way(name, arguments, run, always, size, 0, baseline=True) for name, run in baselines.items()]
            yield Case(operation.name, label, (0, outputs, inputs), tuple(ways))


def selection(
    operation: Operation,
    numbers: Callable[[int, int], tuple[int, ...]],
    bytes_per_weight: float,
    baselines: dict[str, Callable[..., Any]],
) -> Iterator[Case]:
    """`cases` of a selection by the score of Wanda. numbers: outputs, inputs -> what stands behind the weight."""

    def make(outputs: int, inputs: int) -> Make:
        return partial(scored, numbers(outputs, inputs), outputs, inputs)

    return cases(operation, make, bytes_per_weight, baselines)


def copy(values: Tensor, *others: Any) -> Tensor:
    """A copy of the weight: what moving bytes costs on this device."""
    return values.clone()
