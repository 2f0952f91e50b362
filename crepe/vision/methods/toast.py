"""ToaSt: coupled dimensions of attention heads, and hidden channels of feed-forward parts by their activations
(ICML 2026), in the static form: one choice for all images. The first block stays dense, as in the paper.

The importance of a hidden channel is the paper's formula for each calibration image with all its patches, averaged over
the images (`crepe.vision.token_channels`).
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from crepe.vision.heads import coupled_score, kept_dimensions, top_dimensions
from crepe.vision.methods.base import METHODS, FilterPart, HeadChoice, HeadPart, Heads, Layer, Method, largest

# Heads keep a multiple of so many dimensions: what tensor cores and fused attention want.
MULTIPLE = 8


def select_heads(attention: Heads, sparsity: float, score: str = "median") -> HeadChoice | None:
    """As many dimensions for queries and keys as for values and output; the first block stays dense.

    score: a name of `crepe.vision.heads.SCORES`.
    """
    if attention.index == 0:
        return None
    keep = kept_dimensions(attention.query.shape[1], sparsity, MULTIPLE)
    query_key = coupled_score(attention.query, attention.key, score)
    value_output = coupled_score(attention.value, attention.output, score)
    return HeadChoice(top_dimensions(query_key, keep), top_dimensions(value_output, keep))


def first_dimensions(attention: Heads, sparsity: float) -> HeadChoice | None:
    """The first of heads that have been turned; the first block stays dense."""
    if attention.index == 0:
        return None
    heads, dimensions, _ = attention.query.shape
    kept = torch.arange(kept_dimensions(dimensions, sparsity, MULTIPLE)).expand(heads, -1)
    return HeadChoice(kept, kept)


def select_hidden(layer: Layer, keep: int) -> Tensor:
    return largest(layer.statistics["tokens"], keep)


def is_hidden(layer: Layer) -> bool:
    return layer.kind == "linear"


HIDDEN = FilterPart(select_hidden, is_hidden, needs=frozenset({"tokens"}), spares_first=True)
METHODS.add("toast", Method((HeadPart(select_heads), HIDDEN)))
# What the paper compares its score of dimensions with.
METHODS.add("toast-l1", Method((HeadPart(partial(select_heads, score="l1")), HIDDEN)))
METHODS.add("toast-l2", Method((HeadPart(partial(select_heads, score="l2")), HIDDEN)))
METHODS.add("toast-rotated", Method((HeadPart(first_dimensions, rotates=True), HIDDEN)))
