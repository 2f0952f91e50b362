"""Mean and covariance of what a layer reads, from sums over tokens: what repairs in closed form work from."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Moments:
    """Of the inputs of a layer over calibration tokens. mean: (in,); covariance: (in, in), centred. For a convolution
    with groups (groups, in) and (groups, in, in), each group having its own inputs."""

    mean: Tensor
    covariance: Tensor


def moments_of(total: Tensor, gram: Tensor, tokens: int) -> Moments:
    """total: sum of the inputs, (in,); gram: sum of x x^T, (in, in); tokens: how many inputs they hold."""
    mean = total.double() / tokens
    covariance = gram.double() / tokens - mean[..., :, None] * mean[..., None, :]
    return Moments(mean.float(), covariance.float())
