"""What launching has in common: sizes of tiles and the form of a score."""

from __future__ import annotations

from torch import Tensor


def tile_of(inputs: int, most: int, least: int = 16) -> int:
    """The power of two that covers `inputs`, between `least` and `most`."""
    return min(most, max(least, 1 << (inputs - 1).bit_length()))


def factors_of(norm: Tensor | None, row: Tensor | None) -> int:
    """0: the values are the scores; 1: with norm; 2: with norm, row and column."""
    return 0 if norm is None else 1 if row is None else 2
