"""Layers that read channels which are about to go, fitted beforehand to what stays."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from crepe.refine.gram import DAMPING
from crepe.vision.compensation import Moments, compensate


def compensate_readers(
    model: nn.Module,
    removed: Mapping[str, Tensor],
    moments: Mapping[str, Moments],
    norms: Mapping[str, str] | None = None,
    damping: float = DAMPING,
) -> None:
    """Write compensated weights into Linear layers and convolutions of one group, in place, before channels are cut.

    Weights that read removed channels become zero. What a layer loses on average goes into its bias, or, without one,
    into the running mean of the batch norm behind it; without either the fit has no constant.

    removed: layer -> input channels that go, int64; moments: layer -> of its inputs (`crepe.vision.moments`); norms:
    layer -> batch norm that follows it directly.
    """
    with torch.no_grad():
        for name, channels in removed.items():
            _write(model, name, channels, moments[name], (norms or {}).get(name), damping)


def _write(model: nn.Module, name: str, channels: Tensor, moments: Moments, norm: str | None, damping: float) -> None:
    layer = model.get_submodule(name)
    weight, bias = layer.get_parameter("weight"), getattr(layer, "bias", None)
    if bias is None and norm is None:
        moments = _without_constant(moments)
    kept = torch.ones(weight.shape[1], dtype=torch.bool)
    kept[channels.cpu()] = False
    columns = kept.repeat_interleave(weight[0, 0].numel()).nonzero()[:, 0]
    matrix = weight.detach().flatten(1).cpu().float()
    small, shift = compensate(matrix, None, columns, moments, damping)
    whole = torch.zeros_like(matrix)
    whole[:, columns] = small
    weight.copy_(whole.reshape(weight.shape))
    if bias is not None:
        bias += shift.to(bias)
    elif norm is not None:
        mean = model.get_submodule(norm).get_buffer("running_mean")
        mean -= shift.to(mean)


def _without_constant(moments: Moments) -> Moments:
    """Moments around zero: what a layer without a bias can be fitted to."""
    second = moments.covariance + moments.mean[:, None] * moments.mean[None, :]
    return Moments(torch.zeros_like(moments.mean), second)
