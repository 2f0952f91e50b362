"""Sums of |W| over rows and columns, read once."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from crepe.kernels.bench.base import BENCHES, Case
from crepe.kernels.bench.weights import WEIGHT, cases, weight
from crepe.kernels.operations.absolute_sums import OPERATION
from crepe.kernels.reference.sums import absolute_sums


def all_cases() -> Iterator[Case]:
    return cases(OPERATION, lambda *shape: partial(weight, *shape), WEIGHT, {"torch": absolute_sums})


BENCHES.add("absolute_sums", all_cases)
