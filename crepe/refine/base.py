"""What a refinement is."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from crepe.masks.pattern import Pattern
from crepe.registry import Registry

# (weight (out, in), mask (out, in), statistics, pattern) -> (weight', mask')
Refinement = Callable[[Tensor, Tensor, Mapping[str, Tensor], Pattern], tuple[Tensor, Tensor]]

REFINEMENTS: Registry[Refinement] = Registry("refinement", "crepe.refine")
