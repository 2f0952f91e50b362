"""Uniform: every tensor gets the global sparsity."""

from __future__ import annotations

from collections.abc import Mapping

from crepe.allocation.base import ALLOCATIONS


@ALLOCATIONS.register("uniform")
def uniform(shapes: Mapping[str, tuple[int, int]], sparsity: float) -> dict[str, float]:
    """sparsity_t = sparsity for every tensor t."""
    return dict.fromkeys(shapes, sparsity)
