"""A feed-forward part fc2(act(fc1(x))) with fewer hidden channels."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from crepe.vision.compensation import Moments, compensate


@dataclass(frozen=True, eq=False)
class FeedForward:
    """first: (hidden, in); first_bias: (hidden,) or None; second: (out, hidden); second_bias: (out,) or None."""

    first: Tensor
    second: Tensor
    first_bias: Tensor | None = None
    second_bias: Tensor | None = None


def narrow(weights: FeedForward, kept: Tensor, moments: Moments | None = None) -> FeedForward:
    """The part with the hidden channels `kept` (k,): ordinary smaller matrices.

    moments: of the hidden channels behind the activation, before pruning; with them fc2 makes up for what is gone.
    """
    first_bias = None if weights.first_bias is None else weights.first_bias[kept]
    small = replace(weights, first=weights.first[kept], first_bias=first_bias, second=weights.second[:, kept])
    if moments is None:
        return small
    second, second_bias = compensate(weights.second, weights.second_bias, kept, moments)
    return replace(small, second=second, second_bias=second_bias)
