"""What a repair of an image model is."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from torch import Tensor, nn

from crepe.registry import Registry

# (model, changed in place; batches of (pixel values, labels)); labels may be missing, and a repair reads none.
Repair = Callable[[nn.Module, Iterable[tuple[Tensor, Tensor]]], None]

REPAIRS: Registry[Repair] = Registry("refinement of image models", "crepe.vision.repairs")
