"""The share to remove that leaves a wanted number of multiply-accumulates."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

from torch import Tensor, nn

from crepe.vision.attention import Attention, cut_heads
from crepe.vision.cost import macs
from crepe.vision.methods import HeadChoice

# Halvings of the interval of shares until the target is met as closely as whole channels can.
_HALVINGS = 40
Chosen = Sequence[tuple[Attention, HeadChoice]]


def least_share(cost: Callable[[float], float], target: float) -> float:
    """The smallest share from 0 to 1 at which `cost` is `target` or less; cost falls with the share, and cost(1) is
    within the target."""
    low, high = 0.0, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if cost(middle) <= target else (middle, high)
    return high


class HeadCost:
    """Multiply-accumulates that smaller heads save. Widths come in steps, so each set of them is measured once.
    dense: multiply-accumulates of the whole model."""

    def __init__(self, model: nn.Module, example: Tensor) -> None:
        self._model, self._example = model, example
        self.dense = macs(model, example)
        self._known: dict[tuple[tuple[str, int], ...], int] = {}

    def saved(self, chosen: Chosen) -> int:
        """Measured on a copy of the model with the heads cut as `chosen`."""
        key = tuple((attention.name, choice.query_key.shape[1]) for attention, choice in chosen)
        if key not in self._known:
            smaller = copy.deepcopy(self._model)
            for attention, choice in chosen:
                cut_heads(smaller, attention, choice)
            self._known[key] = self.dense - macs(smaller, self._example)
        return self._known[key]
