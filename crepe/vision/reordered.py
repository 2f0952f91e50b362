"""Column blocks in tiles of rows that need the same columns, instead of tiles of neighbouring rows."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from crepe.masks.colblock import ColBlock
from crepe.vision.column_blocks import balanced
from crepe.vision.tile_rows import row_order


def reordered(
    matrices: Mapping[str, Tensor], masks: Mapping[str, Tensor], pattern: ColBlock
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Masks that keep as many blocks in every tile as `masks` do, and the order of the rows in which they are tiled.

    matrices: (out, in); masks: bool (out, in), balanced. Returns name -> bool (out, in), in the order of the model, and
    name -> (out,) int64.
    """
    found, orders = {}, {}
    for name, matrix in matrices.items():
        keep = int((pattern.blocks(masks[name].float())[0] > 0).sum())
        order = row_order(matrix, pattern, keep)
        mask = balanced(matrix.detach().cpu()[order], pattern, keep)
        found[name], orders[name] = mask[order.argsort()], order
    return found, orders
