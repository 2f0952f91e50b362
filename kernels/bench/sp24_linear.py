"""2:4 linear layers, by every backend in the range of tokens where it might win and somewhat beyond."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from crepe.kernels.bench.base import BENCHES, Case, Way
from crepe.kernels.bench.products import (
    NUMBER,
    Shape,
    activations_bytes,
    backend_way,
    dense_ways,
    product_flops,
    random,
)
from crepe.kernels.bench.shapes import shapes
from crepe.kernels.operations.sp24_linear import MOST_MATVEC_TOKENS, OPERATION
from crepe.kernels.reference import sp24
from crepe.masks import NofM

# Rows that are selected and packed for a bench; the codes of the others repeat them.
_PATTERN_ROWS = 128
_LEAST_TOKENS_OF_TENSOR_CORES = 64


def packed(outputs: int, inputs: int, device: torch.device, dtype: torch.dtype, seed: int) -> tuple[Tensor, Tensor]:
    """Random values and codes: (outputs, inputs / 2) and (outputs, inputs / 32) int32."""
    score = random((min(outputs, _PATTERN_ROWS), inputs), device, torch.float32, seed)
    meta = sp24.pack(score, NofM(2, 4).select(score, 0.5))[1]
    rows = torch.arange(outputs, device=device) % len(meta)
    return random((outputs, inputs // 2), device, dtype, seed), meta[rows]


def packed_bytes(outputs: int, inputs: int) -> int:
    """Of the values and 4 bits for every group."""
    return NUMBER * outputs * inputs // 2 + outputs * inputs // 8


def cases() -> Iterator[Case]:
    for label, shape in shapes():
        yield Case("sp24_linear", label, shape, tuple(ways(shape)))


def ways(shape: Shape) -> Iterator[Way]:
    """Of one layer, (tokens, outputs, inputs)."""
    tokens, outputs, inputs = shape

    def make(device: torch.device, dtype: torch.dtype, seed: int) -> tuple[Any, ...]:
        x = random((tokens, inputs), device, dtype, seed)
        return x, *packed(outputs, inputs, device, dtype, seed), None

    size, flops = packed_bytes(outputs, inputs) + activations_bytes(shape), product_flops(shape)
    unpacked = size + 2 * NUMBER * outputs * inputs
    if tokens <= MOST_MATVEC_TOKENS:
        yield backend_way(OPERATION, "matvec", make, size, flops // 2)
    if tokens <= 2 * _LEAST_TOKENS_OF_TENSOR_CORES:
        yield backend_way(OPERATION, "mma", make, size, flops // 2)
        yield backend_way(OPERATION, "matmul", make, size, flops)
    if tokens >= _LEAST_TOKENS_OF_TENSOR_CORES:
        yield backend_way(OPERATION, "unpack", make, unpacked, flops)
    yield from dense_ways(shape, MOST_MATVEC_TOKENS)
    yield _semi_structured_way(shape, size, flops // 2)


def _semi_structured_way(shape: Shape, size: int, flops: int) -> Way:
    """cuSPARSELt with the weight compressed before the clock starts."""
    tokens, outputs, inputs = shape

    def make(device: torch.device, dtype: torch.dtype, seed: int) -> tuple[Tensor, Tensor]:
        x, weight = random((tokens, inputs), device, dtype, seed), random((outputs, inputs), device, dtype, seed)
        weight *= NofM(2, 4).select(weight[:_PATTERN_ROWS], 0.5).repeat(-(-outputs // _PATTERN_ROWS), 1)[:outputs]
        return x, weight if _obstacle(x, weight) else torch.sparse.to_sparse_semi_structured(weight)

    return Way("semi-structured", make, torch.nn.functional.linear, _obstacle, size, flops, baseline=True)


def _obstacle(x: Tensor, weight: Tensor) -> str | None:
    if not x.is_cuda:
        return f"it needs a GPU and the tensors are on {x.device}"
    return None if torch.backends.cusparselt.is_available() else "this torch comes without cuSPARSELt"


BENCHES.add("sp24_linear", cases)
