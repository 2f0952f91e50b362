"""Layers lose what costs the model's outputs least: each is pruned alone by a few shares, and the cheapest steps are
taken until the budget is reached (ours; the same division as the `error` allocation of language models).

The losses of layers pruned together add up only roughly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from crepe.allocation.base import Budget
from crepe.allocation.curves import Curve, least_loss
from crepe.masks import parse_pattern
from crepe.vision.methods.base import Layer
from crepe.vision.widths.base import RULES, Rule

# Shares at which every layer is tried; between them the loss is read as a straight line.
TRIED = (0.25, 0.5, 0.75)


def measured(layers: Sequence[Layer], share: float, curves: Mapping[str, Curve]) -> dict[str, float]:
    """curves: layer -> (share, loss of the whole model), rising, from (0, 0).

    A share beyond what was tried is read as the largest that was.
    """
    shapes = {layer.name: (layer.width, layer.weight[0].numel()) for layer in layers}
    budget = Budget(shapes, share, {}, parse_pattern("unstructured"))
    per_weight = {n: [(s, loss / budget.sizes[n]) for s, loss in curves[n]] for n in shapes}
    return least_loss(per_weight, budget)


RULES.add("measured", Rule(measured, needs_curves=True))
