"""DEPrune: taps of depth-wise convolutions, filters of the point-wise ones that project (Park et al., NeurIPS 2024).

A separable block is PW1 -> DW -> PW2. PW1 keeps its filters, because the depth-wise channels would go with them; PW2
loses filters by the sum of their norms over all layers that additions tie to it.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from torch import Tensor

from crepe.masks.taps import removed_count
from crepe.vision.alignment import Columns, align, modelled_gain
from crepe.vision.methods.base import METHODS, FilterPart, Layer, MaskPart, Method, largest
from crepe.vision.methods.magnitude import norm_score
from crepe.vision.taps import require_a_tap_each, select_taps

GROUP = 32


def select(layers: Mapping[str, Layer], sparsity: float, aligned: bool = True) -> dict[str, Tensor]:
    """Balanced taps of every layer, the same share of each; aligned: kept columns at multiples of 32 (HSR, with the
    modelled gain of `crepe.vision.alignment`).

    Raises:
        CrepeError: a layer would keep fewer taps than it has channels.
    """
    for name, layer in layers.items():  # before columns are filled up to tiles, which would hide it
        require_a_tap_each(layer.weight, sparsity, GROUP, name)
    columns = {name: _columns(layer.weight, sparsity) for name, layer in layers.items()}
    if aligned:
        columns = align(columns, {name: modelled_gain(found.kept) for name, found in columns.items()})
    return {name: select_taps(layer.weight, columns[name].sparsity, GROUP, name=name) for name, layer in layers.items()}


def _columns(weight: Tensor, sparsity: float) -> Columns:
    """What a whole group keeps of its columns, or the only group, where there are fewer channels."""
    channels = min(GROUP, len(weight))
    total = channels * weight[0].numel()
    return Columns(total - removed_count(total, sparsity), total, channels)


def has_taps(layer: Layer) -> bool:
    return layer.kind == "depthwise" and layer.weight[0].numel() > 1


def projects(layer: Layer) -> bool:
    """A point-wise layer that narrows and feeds no depth-wise one."""
    first = any(weight.shape[1] == 1 and weight[0].numel() > 1 for weight in layer.weights)
    return layer.kind == "pointwise" and layer.width < layer.weight.shape[1] and not first


def _parts(aligned: bool) -> tuple[MaskPart, FilterPart]:
    taps = MaskPart(partial(select, aligned=aligned), f"tap:{GROUP}", has_taps)
    return taps, FilterPart(lambda layer, keep: largest(norm_score(layer, 2), keep), projects, seeks_tied=True)


# The names of the paper: B for balanced, H for aligned to the hardware; the whole method is both.
METHODS.add("deprune-b", Method(_parts(False)))
for _name in ("deprune", "deprune-bh"):
    METHODS.add(_name, Method(_parts(True)))
