"""How unequal the work of row tiles is that run side by side, over all masks of a run."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from crepe.masks import ColBlock, parse_pattern
from crepe.vision.column_blocks import imbalance


def worst_imbalance(
    masks: Mapping[str, Tensor], patterns: Mapping[str, str], orders: Mapping[str, Tensor]
) -> float | None:
    """The largest `imbalance` of any tensor with column blocks, None where there is none.

    masks: parameter -> True = kept; patterns: parameter -> pattern; orders: layer -> order of its rows in tiles.
    """
    found = []
    for name, mask in masks.items():
        pattern = parse_pattern(patterns[name])
        if isinstance(pattern, ColBlock):
            rows, order = mask.flatten(1).cpu(), orders.get(name.removesuffix(".weight"))
            found.append(imbalance(rows if order is None else rows[order], pattern))
    return max(found, default=None)
