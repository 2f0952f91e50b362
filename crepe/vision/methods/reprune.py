"""REPrune: filters whose kernels represent the kernels of all (Park et al., AAAI 2024).

The paper divides the sparsity over the layers by the quantile of batch-norm scales, and prunes while it trains, which
is `crepe.vision.concurrent`.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from crepe.vision.methods.base import METHODS, FilterPart, Layer, Method
from crepe.vision.representatives import representatives


def select(layer: Layer, keep: int, normalise: bool = False) -> Tensor:
    """A depth-wise layer that only passes the channels on has one kernel for each of them and nothing to cluster."""
    making = [weight for weight in layer.weights if weight.shape[1] > 1] or [layer.weight]
    return representatives(making, keep, normalise, torch.get_num_threads()).sort().values


def suits(layer: Layer) -> bool:
    """Filters of a grouped convolution see different inputs, so their kernels cannot stand for each other."""
    return layer.kind in ("conv", "pointwise", "linear") and layer.weight.shape[1] > 1


METHODS.add("reprune", Method((FilterPart(select, suits),)))
METHODS.add("reprune-normalised", Method((FilterPart(partial(select, normalise=True), suits),)))
