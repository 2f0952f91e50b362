"""The output projection of an attention whose heads have lost value dimensions, made up for what is gone."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from crepe.refine.gram import DAMPING
from crepe.vision.compensation import Moments, compensate
from crepe.vision.heads import AttentionWeights, keep_value_output


def prune_values(
    weights: AttentionWeights, kept: Tensor, moments: Moments, damping: float = DAMPING
) -> AttentionWeights:
    """`keep_value_output`, with the output projection fitted to what is kept of all heads together.

    kept: (heads, k); damping: as in `compensate`; moments: of the inputs of the output projection, (heads * e), heads
    one after the other, as they are before pruning (`crepe.vision.compensation.transformed` where values were turned).
    """
    heads, dimensions, out = weights.output.shape
    flat = (torch.arange(heads)[:, None] * dimensions + kept).flatten()
    matrix, bias = compensate(weights.output.reshape(-1, out).T, weights.output_bias, flat, moments, damping)
    small = keep_value_output(weights, kept)
    return replace(small, output=matrix.T.reshape(heads, -1, out), output_bias=bias)
