"""Layers lose as many channels as have a small batch-norm scale (REPrune, eq. 8-9; CHEX does the same).

gamma* is the quantile of all batch-norm scales at the wanted share, and a layer's share is that of its scales up to
gamma*. Layers without batch norm get the wanted share itself.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from crepe.vision.methods.base import Layer
from crepe.vision.widths.base import RULES


def quantile_shares(scales: Sequence[Tensor], share: float) -> list[float]:
    """scales: (width,) of each layer. The threshold is the int(total * share)-th smallest of all."""
    everything = torch.cat([scale.abs() for scale in scales]).sort().values
    count = int(len(everything) * share)
    if count == 0:
        return [0.0] * len(scales)
    threshold = everything[count - 1]
    return [float((scale.abs() <= threshold).float().mean()) for scale in scales]


def bn_quantile(layers: Sequence[Layer], share: float) -> dict[str, float]:
    scaled = [layer for layer in layers if layer.scales]
    shares = quantile_shares([layer.scales[0] for layer in scaled], share) if scaled else []
    found = dict(zip((layer.name for layer in scaled), shares, strict=True))
    return {layer.name: found.get(layer.name, share) for layer in layers}


RULES.add("bn-quantile", bn_quantile)
