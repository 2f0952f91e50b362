"""The dense ways that every linear operation is held against, and what all of them read and write."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from crepe.kernels.bench.base import Way
from crepe.kernels.dispatch import Operation, always, triton_obstacle

Shape = tuple[int, int, int]
# Bytes of a number: kernels are measured with 16-bit floats.
NUMBER = 2


def activations_bytes(shape: Shape) -> int:
    """Of the inputs and the outputs of a layer. shape: (tokens, outputs, inputs)."""
    tokens, outputs, inputs = shape
    return NUMBER * tokens * (inputs + outputs)


def product_flops(shape: Shape) -> int:
    """Of the dense product."""
    tokens, outputs, inputs = shape
    return 2 * tokens * outputs * inputs


def random(shape: tuple[int, ...], device: torch.device, dtype: torch.dtype, seed: int) -> Tensor:
    generator = torch.Generator(device).manual_seed(seed)
    return torch.randn(shape, generator=generator, device=device, dtype=dtype)


def dense_arguments(shape: Shape) -> Callable[[torch.device, torch.dtype, int], tuple[Tensor, Tensor]]:
    """x and a dense weight."""
    tokens, outputs, inputs = shape

    def make(device: torch.device, dtype: torch.dtype, seed: int) -> tuple[Tensor, Tensor]:
        return random((tokens, inputs), device, dtype, seed), random((outputs, inputs), device, dtype, seed + 1)

    return make


def dense_ways(shape: Shape, most_matvec_tokens: int) -> tuple[Way, ...]:
    """cuBLAS, and for a few tokens a dense kernel written like ours."""
    size = NUMBER * shape[1] * shape[2] + activations_bytes(shape)
    flops, make = product_flops(shape), dense_arguments(shape)
    ways = [Way("F.linear", make, torch.nn.functional.linear, always, size, flops, baseline=True)]
    if shape[0] <= most_matvec_tokens:
        ways.append(Way("dense Triton", make, _dense_triton, _dense_triton_obstacle, size, flops, baseline=True))
    return tuple(ways)


def _dense_triton(x: Tensor, weight: Tensor) -> Tensor:
    from crepe.kernels.triton.dense_matvec import matvec

    return matvec(x, weight)


def _dense_triton_obstacle(x: Tensor, weight: Tensor) -> str | None:
    return triton_obstacle(weight)


def backend_way(operation: Operation, name: str, make: Callable[..., tuple[object, ...]], size: int, flops: int) -> Way:
    """A backend of the operation; `bytes` and `flops` are those of `Way`."""
    backend = next(backend for backend in operation.backends if backend.name == name)
    return Way(name, make, backend.run, backend.obstacle, size, flops)
