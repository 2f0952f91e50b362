"""Turning the dimensions of attention heads before some are removed, so that they come in order of importance.

The logits depend on Q K^T and the output on V O alone: any invertible R may go between them, Q R and K R^-T, V R and
R^-1 O, and nothing changes. In the bases found here, keeping the first k dimensions is the best that any k dimensions
can do, which no choice of given coordinates can beat (for the second moments given). Ours, on top of ToaSt.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from crepe.vision.heads import AttentionWeights

# Share of the mean diagonal that is added to a second moment, so that its root can be inverted.
_DAMPING = 1e-4


def projected(covariance: Tensor, projection: Tensor, offset: Tensor | None = None) -> Tensor:
    """Second moments of y = W x + b for each head: W C W^T, plus m m^T with the mean m where `offset` gives it.

    covariance: (in, in) of x, centred; projection: (heads, d, in); offset: (heads, d), W mean(x) + b.
    Returns (heads, d, d) float64.
    """
    weights = projection.double()
    moment = weights @ covariance.double() @ weights.transpose(1, 2)
    return moment if offset is None else moment + offset.double()[:, :, None] * offset.double()[:, None, :]


def rotate_query_key(
    weights: AttentionWeights, query_moment: Tensor | None = None, key_moment: Tensor | None = None
) -> AttentionWeights:
    """The same attention with the dimensions of queries and keys in falling order of what they add to the logits.

    With C_q = E[q q^T] and C_k the covariance of the keys (their mean adds a constant to all logits of a query, which
    softmax ignores), C_q^1/2 C_k^1/2 = U S V^T gives Q <- Q C_q^-1/2 U S^1/2 and K <- K C_k^-1/2 V S^1/2: of all
    products of rank k the first k dimensions lose the least of E[(q k^T)^2] over independent queries and keys.

    query_moment, key_moment: (heads, d, d); without them the inputs count as white, so W W^T.
    """
    left, left_inverse = _root(_given(query_moment, weights.query))
    right, right_inverse = _root(_given(key_moment, weights.key))
    u, s, vh = torch.linalg.svd(left @ right)
    half = s.sqrt()[:, :, None]
    turn_query, turn_key = half * (u.mT @ left_inverse), half * (vh @ right_inverse)
    return replace(
        weights,
        query=_turned(turn_query, weights.query),
        key=_turned(turn_key, weights.key),
        query_bias=_turned_bias(turn_query, weights.query_bias),
        key_bias=_turned_bias(turn_key, weights.key_bias),
    )


def rotate_value_output(weights: AttentionWeights, value_moment: Tensor | None = None) -> AttentionWeights:
    """The same attention with the dimensions of the values in falling order of what they add to the output.

    With C the covariance of what the output projection reads of a head, O C^1/2 = U S V^T gives
    V <- S^1/2 V^T C^-1/2 V and O <- U S^1/2; the mean is left to the bias (`--refine compensate`).

    value_moment: (heads, e, e); without it the inputs count as white, so W W^T.
    """
    root, inverse = _root(_given(value_moment, weights.value))
    u, s, vh = torch.linalg.svd(weights.output.double().mT @ root, full_matrices=False)
    half = s.sqrt()[:, :, None]
    turn = half * (vh @ inverse)
    return replace(
        weights,
        value=_turned(turn, weights.value),
        value_bias=_turned_bias(turn, weights.value_bias),
        output=(half * u.mT).to(weights.output.dtype),
    )


def _given(moment: Tensor | None, projection: Tensor) -> Tensor:
    return projection.double() @ projection.double().mT if moment is None else moment.double()


def _root(moment: Tensor) -> tuple[Tensor, Tensor]:
    """Square root of the damped moments and its inverse, (heads, d, d)."""
    mean = moment.diagonal(dim1=1, dim2=2).mean(1)
    added = torch.where(mean > 0, _DAMPING * mean, torch.ones_like(mean))
    values, vectors = torch.linalg.eigh(moment + added[:, None, None] * torch.eye(moment.shape[1]).to(moment))
    # Rounding leaves eigenvalues a little below the damping.
    root = torch.maximum(values, added[:, None] / 2).sqrt()
    return (vectors * root[:, None]) @ vectors.mT, (vectors / root[:, None]) @ vectors.mT


def _turned(turn: Tensor, projection: Tensor) -> Tensor:
    return (turn @ projection.double()).to(projection.dtype)


def _turned_bias(turn: Tensor, bias: Tensor | None) -> Tensor | None:
    return None if bias is None else (turn @ bias.double()[:, :, None])[:, :, 0].to(bias.dtype)
