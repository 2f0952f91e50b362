"""BCBP's balanced column blocks, chosen by what each costs the output of its tile once the others are fitted again
(ours)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor

from crepe.masks.colblock import ColBlock
from crepe.masks.select import select_largest
from crepe.vision.column_blocks import kept_blocks, natural_shares
from crepe.vision.elimination import block_costs
from crepe.vision.methods.base import METHODS, Layer, MaskPart, Method
from crepe.vision.methods.bcbp import suits


def select(layers: Mapping[str, Layer], sparsity: float, pattern: ColBlock, step: int) -> dict[str, Tensor]:
    """The three steps of `crepe.vision.column_blocks` with costs in the place of norms."""
    costs = {name: layer.statistics["score"] for name, layer in layers.items()}
    shares = natural_shares(costs, sparsity)
    masks = {}
    for name, layer in layers.items():
        kept = select_largest(costs[name], kept_blocks(shares[name], costs[name].shape[1], step))
        masks[name] = pattern.spread(kept, layer.width).reshape(layer.weight.shape)
    return masks


def tile_costs(layer: Layer, pattern: ColBlock) -> Tensor:
    """(tiles, blocks), squared output error per weight of the block."""
    assert layer.moments is not None
    matrix = layer.weight.flatten(1) * (1.0 if layer.gain is None else layer.gain[:, None])
    tiles = torch.split(matrix, pattern.rows)
    found = [
        block_costs(tile, layer.moments.covariance, pattern.columns) / (len(tile) * pattern.columns) for tile in tiles
    ]
    return torch.stack(found)


def _method(pattern: ColBlock, step: int) -> Method:
    part = partial(select, pattern=pattern, step=step)
    fits, score = partial(suits, pattern=pattern), partial(tile_costs, pattern=pattern)
    return Method((MaskPart(part, str(pattern), fits, frozenset({"moments"}), score),))


METHODS.add("bcbp-obs", _method(ColBlock(32, 8), 1))
METHODS.add("bcbp-vector-obs", _method(ColBlock(32, 1), 8))
