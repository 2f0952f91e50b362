"""Uniform: every layer loses the same share of its channels."""

from __future__ import annotations

from collections.abc import Sequence

from crepe.vision.methods.base import Layer
from crepe.vision.widths.base import RULES, Rule


def uniform(layers: Sequence[Layer], share: float) -> dict[str, float]:
    return {layer.name: share for layer in layers}


RULES.add("uniform", Rule(uniform))
