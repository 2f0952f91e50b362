"""Layers lose as many channels as have a small batch-norm scale (REPrune, eq. 8-9; CHEX does the same).

gamma* is the quantile of all batch-norm scales at the wanted share, and a layer's share is that of its scales up to
gamma*. Layers without batch norm get the wanted share itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from crepe.vision.methods.base import Layer
from crepe.vision.widths.base import RULES, Rule


def layer_sparsities(scales: Mapping[str, Tensor], sparsity: float) -> dict[str, float]:
    """s_l: the share of a layer's |gamma| that lie at or below gamma*, the `sparsity` quantile of all of them.

    gamma* is the value below and at which `sparsity` of all scales lie, rounded half up. Scales that tie with it all
    count, as in the paper: where all scales are equal, as in a fresh network, every layer gets 1.

    scales: name -> (out,), of layers that may lose filters only.
    """
    every = torch.cat([scale.detach().float().abs().flatten() for scale in scales.values()]).sort().values
    below = int(sparsity * len(every) + 0.5)
    if below == 0:
        return dict.fromkeys(scales, 0.0)
    threshold = every[below - 1]
    return {name: float((scale.detach().float().abs() <= threshold).double().mean()) for name, scale in scales.items()}


def bn_quantile(layers: Sequence[Layer], share: float) -> dict[str, float]:
    scales = {layer.name: layer.scales[0] for layer in layers if layer.scales}
    found = layer_sparsities(scales, share) if scales else {}
    return {layer.name: found.get(layer.name, share) for layer in layers}


RULES.add("bn-quantile", Rule(bn_quantile))
