"""The mean of |W| in windows of 3 x 3 and 7 x 7, read once and written in float32, beside `avg_pool2d`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch

from crepe.kernels.bench.base import BENCHES, Case, Make
from crepe.kernels.bench.weights import WEIGHT, cases, weight
from crepe.kernels.operations.box_mean import OPERATION
from crepe.kernels.reference.sums import box_mean


def all_cases() -> Iterator[Case]:
    for kernel in (3, 7):
        for case in cases(OPERATION, lambda *shape, own=kernel: _make(own, *shape), WEIGHT + 4, {"torch": box_mean}):
            yield replace(case, label=f"{case.label} {kernel}x{kernel}")


def _make(kernel: int, outputs: int, inputs: int) -> Make:
    def make(device: torch.device, dtype: torch.dtype, seed: int) -> tuple[torch.Tensor, int]:
        return *weight(outputs, inputs, device, dtype, seed), kernel

    return make


BENCHES.add("box_mean", all_cases)
