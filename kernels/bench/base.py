"""The form in which an operation says what is to be measured: cases, and the ways to compute each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from crepe.registry import Registry

Make = Callable[[torch.device, torch.dtype, int], tuple[Any, ...]]


@dataclass(frozen=True)
class Way:
    """One way to compute a case: a backend of the operation, or what it is held against.

    make: device, dtype and seed -> arguments of `run`; other seeds give other copies, so that no copy stays in a cache.
    obstacle: takes the same arguments and says why `run` cannot serve them, None where it can.
    bytes: what has to be read and written at least. flops: floating-point operations on the way taken, counted densely
    where the way computes densely. The floor of its time is the longer of bytes / bandwidth and flops / peak.
    """

    name: str
    make: Make
    run: Callable[..., Tensor]
    obstacle: Callable[..., str | None]
    bytes: int
    flops: int
    baseline: bool = False


@dataclass(frozen=True)
class Case:
    """One operation on one shape. label: where the shape occurs. shape: (tokens, outputs, inputs)."""

    operation: str
    label: str
    shape: tuple[int, int, int]
    ways: tuple[Way, ...]


# Name of a bench -> all of its cases, largest use first. Making a case costs nothing; `Way.make` allocates.
BENCHES: Registry[Callable[[], Iterator[Case]]] = Registry("bench", "crepe.kernels.bench")
