"""The filters whose kernels stand for the kernels of all: REPrune's selection for one set of channels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from crepe.vision.coverage import cover
from crepe.vision.ward import kernel_clusters


def representatives(weights: Sequence[Tensor], keep: int, normalise: bool = False, workers: int = 1) -> Tensor:
    """Filters in the order in which greedy coverage takes them: (keep,) int64.

    weights: (out, in, kh, kw) of every layer that makes the channels; each is clustered with a cut of its own, and the
    clusters of all are to be covered. Ties go to the filter of larger l2 norm, then to the lower index. normalise,
    workers: see `crepe.vision.ward`.
    """
    clusters = torch.cat([kernel_clusters(weight, keep, normalise, workers) for weight in weights], dim=1)
    norms = torch.cat([weight.detach().float().flatten(1) for weight in weights], dim=1).norm(dim=1)
    return cover(clusters, keep, norms.cpu())
