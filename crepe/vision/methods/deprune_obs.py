"""DEPrune's balanced taps, chosen by what each costs the layer's output once the others are fitted again (ours)."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from crepe.vision.elimination import tap_costs
from crepe.vision.methods.base import METHODS, Layer, MaskPart, Method
from crepe.vision.methods.deprune import GROUP, has_taps
from crepe.vision.taps import select_taps


def select(layers: Mapping[str, Layer], sparsity: float) -> dict[str, Tensor]:
    return {
        name: select_taps(layer.weight, sparsity, GROUP, layer.statistics["score"], name)
        for name, layer in layers.items()
    }


def costs(layer: Layer) -> Tensor:
    assert layer.moments is not None
    return tap_costs(layer.weight.flatten(1), layer.moments.covariance, layer.gain)


METHODS.add("deprune-obs", Method((MaskPart(select, f"tap:{GROUP}", has_taps, frozenset({"moments"}), costs),)))
