"""Weights from bits and values, with about half of them kept, beside the expansion in plain torch."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from crepe.kernels.bench.base import BENCHES, Case, Make
from crepe.kernels.bench.weights import WEIGHT, cases, weight
from crepe.kernels.operations.bitmap_unpack import OPERATION
from crepe.kernels.reference import bitmap

# Half of the values and the bits are read, the dense weight is written.
BYTES = 1.5 * WEIGHT + 1 / 8


def all_cases() -> Iterator[Case]:
    return cases(OPERATION, _make, BYTES, {"torch": bitmap.unpack})


def _make(outputs: int, inputs: int) -> Make:
    def make(device: torch.device, dtype: torch.dtype, seed: int) -> tuple[Tensor, Tensor, list[int]]:
        (dense,) = weight(outputs, inputs, device, dtype, seed)
        return *bitmap.pack(dense, dense > 0), [outputs, inputs]

    return make


BENCHES.add("bitmap_unpack", all_cases)
