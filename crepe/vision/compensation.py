"""Making up for removed inputs of a linear layer: their mean goes into the bias, and what the kept inputs can say about
them goes into the kept weights. Closed form, no training."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from crepe.refine.gram import DAMPING, damped


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


def transformed(moments: Moments, turn: Tensor) -> Moments:
    """Moments of T x. turn: (out, in)."""
    return Moments(turn @ moments.mean, turn @ moments.covariance @ turn.T)


def fold_mean(weight: Tensor, bias: Tensor | None, kept: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
    """The layer on its inputs `kept`, with what the removed ones give on average in its bias.

    weight: (out, in); bias: (out,); kept: (k,) int64; mean: (in,). Returns (out, k) and (out,).
    """
    small = weight[:, kept]
    lost = weight.float() @ mean.float() - small.float() @ mean[kept].float()
    old = torch.zeros_like(lost) if bias is None else bias.float()
    return small, (old + lost).to(weight.dtype)


def compensate(
    weight: Tensor, bias: Tensor | None, kept: Tensor, moments: Moments, damping: float = DAMPING
) -> tuple[Tensor, Tensor]:
    """The layer on its inputs `kept` that comes closest to the whole layer over the calibration tokens.

    W'_S = W_S + W_P C_PS (C_SS + d I)^-1 and b' = b + W m - W' m_S, with S the kept and P the removed inputs: ridge
    regression of the lost output on the kept inputs. The damping d is `damping` times the mean variance.
    """
    dense = weight.float()
    removed = torch.ones(dense.shape[1], dtype=torch.bool, device=dense.device)
    removed[kept] = False
    covariance = moments.covariance.float()
    demand = dense[:, removed] @ covariance[removed][:, kept]
    small = dense[:, kept] + torch.linalg.solve(damped(covariance[kept][:, kept], damping), demand.T).T
    old = torch.zeros(len(dense), device=dense.device) if bias is None else bias.float()
    shifted = old + dense @ moments.mean.float() - small @ moments.mean[kept].float()
    return small.to(weight.dtype), shifted.to(weight.dtype)


def compensate_channels(
    weight: Tensor, bias: Tensor | None, kept: Tensor, moments: Moments, damping: float = DAMPING
) -> tuple[Tensor, Tensor]:
    """`compensate` for a convolution whose input channels but `kept` go; its inputs are im2col columns.

    weight: (out, in, kh, kw); moments: of (in * kh * kw,). Returns (out, k, kh, kw) and (out,), which a convolution
    without bias can leave to the batch norm behind it by subtracting it from the running mean.
    """
    taps = weight[0, 0].numel()
    columns = (kept[:, None] * taps + torch.arange(taps, device=kept.device)).flatten()
    small, shifted = compensate(weight.flatten(1), bias, columns, moments, damping)
    return small.reshape(len(weight), len(kept), *weight.shape[2:]), shifted
