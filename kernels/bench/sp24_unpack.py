"""Unpacking 2:4 weights, beside a copy of the dense weight."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from crepe.kernels.bench.base import BENCHES, Case, Way
from crepe.kernels.bench.products import NUMBER, backend_way, random
from crepe.kernels.bench.shapes import BLOCKS
from crepe.kernels.bench.sp24_linear import packed, packed_bytes
from crepe.kernels.dispatch import always
from crepe.kernels.operations.sp24_unpack import OPERATION


def cases() -> Iterator[Case]:
    for block in BLOCKS:
        for label, outputs, inputs in block.linears():
            size = NUMBER * outputs * inputs
            ways = (
                backend_way(
                    OPERATION, "triton", partial(packed, outputs, inputs), packed_bytes(outputs, inputs) + size, 0
                ),
                Way("copy", partial(_dense, outputs, inputs), torch.clone, always, 2 * size, 0, baseline=True),
            )
            yield Case("sp24_unpack", label, (0, outputs, inputs), ways)


def _dense(outputs: int, inputs: int, device: torch.device, dtype: torch.dtype, seed: int) -> tuple[Tensor]:
    return (random((outputs, inputs), device, dtype, seed),)


BENCHES.add("sp24_unpack", cases)
