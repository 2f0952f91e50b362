"""Kept columns that fill the tiles of a matrix product (DEPrune, NeurIPS 2024: hardware-aware recalibration).

A product over K' columns takes as long as one over the next multiple of the tile, so the columns that overflow the last
full tile are either pruned as well, where that gains most, or the tile is filled up with columns that cost nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Columns:
    """The columns of one group of a layer (all whole groups have the same): `kept` of `total`, never below `least`."""

    kept: int
    total: int
    least: int = 1

    @property
    def sparsity(self) -> float:
        return 1 - self.kept / self.total


def modelled_gain(kept: int, tile: int = 32) -> float:
    """alpha = ceil(K' / t) / floor(K' / t), the speed-up from pruning the overflow where time is the number of tiles.

    1.0 below one tile, where nothing can be gained. Our model: the paper measures alpha.
    """
    full = kept // tile
    return -(-kept // tile) / full if full else 1.0


def measured_gain(seconds: Sequence[float], kept: int, tile: int = 32) -> float:
    """alpha = T(K') / T(K' - overflow), with seconds[k] the measured time of the layer with k kept columns."""
    return seconds[kept] / seconds[kept - kept % tile] if kept >= tile else 1.0


def align(layers: Mapping[str, Columns], gains: Mapping[str, float], tile: int = 32) -> dict[str, Columns]:
    """The layers with their kept columns at multiples of `tile`.

    Layers with an overflow e = K' mod t are ranked by beta = alpha / e. The upper half (rounded down; ties go to the
    earlier layer) loses its overflow, the others are filled up to the next multiple, or as far as they have columns, so
    that the sparsity of all together stays about the same. A layer that would fall below `least` is filled up too.

    gains: alpha of every layer.
    """
    over = [name for name, columns in layers.items() if columns.kept % tile]
    ranked = sorted(over, key=lambda name: -gains[name] / (layers[name].kept % tile))
    cut = set(ranked[: len(ranked) // 2])
    return {name: _aligned(columns, tile, name in cut) if name in over else columns for name, columns in layers.items()}


def _aligned(columns: Columns, tile: int, cut: bool) -> Columns:
    down = columns.kept - columns.kept % tile
    fits = cut and down >= max(columns.least, 1)
    return Columns(down if fits else min(down + tile, columns.total), columns.total, columns.least)
