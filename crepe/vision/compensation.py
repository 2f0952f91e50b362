"""Mean and covariance of what a layer reads, from sums over tokens: what repairs in closed form work from."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

# Below this share of the mean square a variance cannot be told from the rounding of float32 sums, and matters little
# beside the mean, for which the bias makes up.
_ROUNDING = 1e-5


@dataclass(frozen=True, eq=False)
class Moments:
    """Of the inputs of a layer over calibration tokens. mean: (in,); covariance: (in, in), centred. For a convolution
    with groups (groups, in) and (groups, in, in), each group having its own inputs."""

    mean: Tensor
    covariance: Tensor


def moments_of(total: Tensor, gram: Tensor, tokens: int) -> Moments:
    """total: sum of the inputs, (in,); gram: sum of x x^T, (in, in); tokens: how many inputs they hold.

    An input that is as good as constant has a covariance of exactly 0: what the difference leaves of it can be
    rounding, of any sign.
    """
    mean, second = total.double() / tokens, gram.double() / tokens
    covariance = second - mean[..., :, None] * mean[..., None, :]
    varies = covariance.diagonal(dim1=-2, dim2=-1) > _ROUNDING * second.diagonal(dim1=-2, dim2=-1)
    covariance *= varies[..., :, None] & varies[..., None, :]
    return Moments(mean.float(), covariance.float())
