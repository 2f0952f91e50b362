"""Linear layers in balanced column blocks that keep half of their inputs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

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
from crepe.kernels.operations.colblock_linear import LEAST_PREFILL_TOKENS, MOST_MATVEC_TOKENS, OPERATION

# Rows and columns of a block, and the share of blocks that is kept.
PATTERNS = ((64, 8), (128, 16))
DENSITY = 0.5


def cases() -> Iterator[Case]:
    for label, shape in shapes():
        for rows, columns in PATTERNS:
            yield Case("colblock_linear", f"{label} {rows}x{columns}", shape, tuple(ways(shape, rows, columns)))


def ways(shape: Shape, rows: int, columns: int) -> Iterator[Way]:
    """Of one layer, (tokens, outputs, inputs), in blocks of `rows` x `columns`."""
    tokens, outputs, inputs = shape
    tiles, kept = -(-outputs // rows), int(DENSITY * inputs) // columns

    def make(device: torch.device, dtype: torch.dtype, seed: int) -> tuple[Any, ...]:
        score = random((tiles, inputs // columns), device, torch.float32, seed)
        blocks = score.topk(kept).indices.sort().values.int()
        values = random((outputs, kept * columns), device, dtype, seed)
        return random((tokens, inputs), device, dtype, seed), values, blocks, rows, columns, None

    size = NUMBER * outputs * kept * columns + 4 * tiles * kept + activations_bytes(shape)
    flops = product_flops((tokens, outputs, kept * columns))
    if tokens <= MOST_MATVEC_TOKENS:
        yield backend_way(OPERATION, "matvec", make, size, flops)
    yield backend_way(OPERATION, "matmul", make, size, flops)
    if tokens >= LEAST_PREFILL_TOKENS:
        yield backend_way(OPERATION, "prefill", make, size, flops)
    yield from dense_ways(shape, MOST_MATVEC_TOKENS)


BENCHES.add("colblock_linear", cases)
