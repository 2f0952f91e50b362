"""The mask of 2:4 and of 4:8 from weights and norms."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from crepe.kernels.bench.base import BENCHES, Case
from crepe.kernels.bench.weights import WEIGHT, selection
from crepe.kernels.operations.select_n_of_m import OPERATION
from crepe.kernels.reference.selection import select_n_of_m


def cases() -> Iterator[Case]:
    for n, m in ((2, 4), (4, 8)):
        numbers = (n, m)
        for case in selection(OPERATION, lambda *_, own=numbers: own, WEIGHT + 1, {"torch": select_n_of_m}):
            yield replace(case, label=f"{case.label} {n}:{m}")


BENCHES.add("select_n_of_m", cases)
