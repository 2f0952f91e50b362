"""What a repair of an image model is."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torch import Tensor, nn

from crepe.registry import Registry
from crepe.vision.removal import Removal

# Batches of (pixel values, labels); labels may be missing, and a repair reads none.
Batches = Iterable[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Repair:
    """before: works on the dense model, in place, knowing what is about to go; after: works on what is left, in place.
    A repair has one of them or both."""

    before: Callable[[nn.Module, Removal, Batches], None] | None = None
    after: Callable[[nn.Module, Batches], None] | None = None


REPAIRS: Registry[Repair] = Registry("refinement of image models", "crepe.vision.repairs")
