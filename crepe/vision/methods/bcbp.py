"""BCBP: column blocks inside row tiles, as many in every tile (Park et al., AAAI 2023; reconstructed, see
`crepe.vision.column_blocks`)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from torch import Tensor

from crepe.masks.colblock import ColBlock
from crepe.vision.column_blocks import select_blocks
from crepe.vision.methods.base import METHODS, Layer, MaskPart, Method


def select(layers: Mapping[str, Layer], sparsity: float, pattern: ColBlock, step: int) -> dict[str, Tensor]:
    masks = select_blocks({name: layer.weight.flatten(1) for name, layer in layers.items()}, pattern, sparsity, step)
    return {name: mask.reshape(layers[name].weight.shape) for name, mask in masks.items()}


def suits(layer: Layer, pattern: ColBlock) -> bool:
    """Grouped and depth-wise convolutions are many small products and have no columns to share."""
    return layer.kind in ("conv", "pointwise", "linear") and pattern.obstacle(layer.weight.flatten(1).shape) is None


def _method(pattern: ColBlock, step: int) -> Method:
    part = partial(select, pattern=pattern, step=step)
    return Method((MaskPart(part, str(pattern), partial(suits, pattern=pattern)),))


METHODS.add("bcbp", _method(ColBlock(32, 8), 1))
# The vectors of the paper; kept columns are a multiple of 8 all the same.
METHODS.add("bcbp-vector", _method(ColBlock(32, 1), 8))
