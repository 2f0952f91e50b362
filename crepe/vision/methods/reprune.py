"""REPrune: filters whose kernels represent the kernels of all (Park et al., AAAI 2024).

The steps are in `crepe.vision.ward` and `crepe.vision.coverage`; the paper's way of dividing the sparsity over the
layers is the quantile of batch-norm scales, and training while pruning is `crepe.vision.concurrent`.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from crepe.vision.coverage import cover
from crepe.vision.methods.base import METHODS, FilterPart, Layer, Method
from crepe.vision.ward import kernel_clusters


def select(layer: Layer, keep: int, normalise: bool = False) -> Tensor:
    """Clusters of every layer that makes the channels, side by side; ties go to the filter of larger l2 norm.

    A depth-wise layer that only passes the channels on has one kernel for each of them and nothing to cluster.
    """
    making = [weight for weight in layer.weights if weight.shape[1] > 1] or [layer.weight]
    clusters = torch.cat([kernel_clusters(weight, keep, normalise) for weight in making], dim=1)
    return cover(clusters, keep, layer.matrix.norm(dim=1).cpu()).sort().values


def suits(layer: Layer) -> bool:
    """Filters of a grouped convolution see different inputs, so their kernels cannot stand for each other."""
    return layer.kind in ("conv", "pointwise", "linear") and layer.weight.shape[1] > 1


METHODS.add("reprune", Method((FilterPart(select, suits),)))
METHODS.add("reprune-normalised", Method((FilterPart(partial(select, normalise=True), suits),)))
