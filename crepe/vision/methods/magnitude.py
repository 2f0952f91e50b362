"""Filter norms: l1 (Li et al. 2017) and l2 (He et al. 2018)."""

from __future__ import annotations

import torch
from torch import Tensor

from crepe.vision.methods.base import METHODS, FilterPart, Layer, Method, largest


def norm_score(layer: Layer, power: int) -> Tensor:
    """||F_i||_p of every filter, summed over tied layers: (out,) float32."""
    return torch.stack([weight.flatten(1).norm(power, dim=1) for weight in layer.weights]).sum(0)


METHODS.add("l1", Method((FilterPart(lambda layer, keep: largest(norm_score(layer, 1), keep)),)))
METHODS.add("l2", Method((FilterPart(lambda layer, keep: largest(norm_score(layer, 2), keep)),)))
