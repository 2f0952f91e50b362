"""How many filters each layer keeps, from the scales of its batch norm (REPrune eq. 8-9, Liu et al. 2017)."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor


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


def kept_filters(width: int, sparsity: float) -> int:
    """ceil((1 - sparsity) * width), at least 1."""
    # Without the small number 0.3 * 10 would be a little above 3 and give 4.
    return max(math.ceil((1 - sparsity) * width - 1e-9), 1)
