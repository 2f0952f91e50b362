"""Weights with every second one kept into bits and values, beside a copy of the dense weight."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from crepe.kernels.bench.base import BENCHES, Case, Make
from crepe.kernels.bench.weights import WEIGHT, cases, copy, weight
from crepe.kernels.operations.bitmap_pack import OPERATION

# Weight and mask are read, half of the values and the bits are written.
BYTES = 1.5 * WEIGHT + 1 + 1 / 8


def all_cases() -> Iterator[Case]:
    return cases(OPERATION, _make, BYTES, {"copy": copy})


def _make(outputs: int, inputs: int) -> Make:
    def make(device: torch.device, dtype: torch.dtype, seed: int) -> tuple[Tensor, Tensor, int]:
        (dense,) = weight(outputs, inputs, device, dtype, seed)
        return dense, dense > 0, int(torch.count_nonzero(dense > 0))

    return make


BENCHES.add("bitmap_pack", all_cases)
