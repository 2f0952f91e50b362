"""Taylor: what the loss changes by, to first order, when a filter goes (Molchanov et al. 2019, eq. 8)."""

from __future__ import annotations

from torch import Tensor

from crepe.vision.methods.base import METHODS, FilterPart, Layer, Method, largest


def select(layer: Layer, keep: int) -> Tensor:
    return largest(layer.statistics["taylor"], keep)


METHODS.add("taylor", Method((FilterPart(select, needs=frozenset({"taylor"})),)))
