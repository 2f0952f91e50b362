"""Heads of a model turned before some of their dimensions go: the same network, with the best dimensions first.

Ours, on top of ToaSt; the mathematics is in `crepe.vision.rotation`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from crepe.errors import CrepeError
from crepe.vision.attention import Attention, attention_weights, write_attention
from crepe.vision.compensation import Moments
from crepe.vision.cut import answer, distance
from crepe.vision.heads import AttentionWeights
from crepe.vision.moments import input_moments
from crepe.vision.rotation import projected, rotate_query_key, rotate_value_output

# Largest difference of the logits that the roots and singular vectors of a rotation may leave.
_TOLERANCE = 1e-3


def turn_heads(
    model: nn.Module, attentions: Sequence[Attention], batches: Iterable[tuple[Tensor, Tensor]], example: Tensor
) -> None:
    """Rotate queries with keys and values with outputs, in place, by the moments over `batches`.

    Raises:
        CrepeError: the model computes something else then, as with rotary positions.
    """
    names = [name for attention in attentions for name in (attention.query, attention.output)]
    device = next(model.parameters()).device
    moments = input_moments(model, names, (pixels for pixels, _ in batches), device)
    with torch.no_grad():
        before = answer(model, example.to(device))
        for attention in attentions:
            weights = attention_weights(model, attention)
            turned = _turned(weights, moments[attention.query], moments[attention.output])
            write_attention(model, attention, turned)
        if distance(before, answer(model, example.to(device))) > _TOLERANCE:
            raise CrepeError(
                f"the heads of {attentions[0].name}, ... cannot be turned without changing the network: use a method "
                "that does not rotate, such as toast"
            )


def _turned(weights: AttentionWeights, inputs: Moments, outputs: Moments) -> AttentionWeights:
    """inputs: of the projections; outputs: of what the output projection reads, all heads one after the other."""
    offset = weights.query @ inputs.mean.to(weights.query)
    offset = offset if weights.query_bias is None else offset + weights.query_bias
    covariance = inputs.covariance.to(weights.query)
    query, key = projected(covariance, weights.query, offset), projected(covariance, weights.key)
    heads, dimensions, _ = weights.value.shape
    blocks = outputs.covariance.to(weights.query).view(heads, dimensions, heads, dimensions)
    value = torch.stack([blocks[head, :, head] for head in range(heads)])
    # The moments of the keys leave their mean out, which only shifts all logits of a query alike.
    return rotate_value_output(rotate_query_key(weights, query, key), value)
