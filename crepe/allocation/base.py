"""What an allocation rule is."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from crepe.registry import Registry

# Shapes (out, in) of all tensors and the global sparsity -> the sparsity of each tensor.
Allocation = Callable[[Mapping[str, tuple[int, int]], float], dict[str, float]]

ALLOCATIONS: Registry[Allocation] = Registry("allocation", "crepe.allocation")
