"""Network slimming: the scale of the batch norm behind a filter says how much of it goes on (Liu et al. 2017)."""

from __future__ import annotations

import torch
from torch import Tensor

from crepe.vision.methods.base import METHODS, FilterPart, Layer, Method, largest


def scale_score(layer: Layer) -> Tensor:
    """|gamma_i|, summed over tied layers: (out,)."""
    return torch.stack(layer.scales).abs().sum(0)


def has_scale(layer: Layer) -> bool:
    return bool(layer.scales)


METHODS.add("bn-scale", Method((FilterPart(lambda layer, keep: largest(scale_score(layer), keep), has_scale),)))
