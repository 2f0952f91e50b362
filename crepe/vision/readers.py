"""Layers that are about to lose inputs or weights, fitted beforehand to what stays."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from crepe.refine.gram import DAMPING
from crepe.vision.compensation import Moments
from crepe.vision.shared_columns import refit


def fit_to_kept(
    model: nn.Module,
    kept: Mapping[str, Tensor],
    moments: Mapping[str, Moments],
    norms: Mapping[str, str] | None = None,
    damping: float = DAMPING,
) -> None:
    """Write compensated weights into Linear layers and convolutions, in place, before anything is cut.

    Weights that are not kept become zero, the others are the damped least squares over the calibration inputs. What a
    layer loses on average goes into its bias, or, without one, into the running mean of the batch norm behind it;
    without either the fit has no constant.

    kept: layer -> bool, of the shape of its weight; moments: layer -> of its inputs (`crepe.vision.moments`); norms:
    layer -> batch norm that follows it directly.
    """
    with torch.no_grad():
        for name, mask in kept.items():
            _write(model, name, mask, moments[name], (norms or {}).get(name), damping)


def _write(model: nn.Module, name: str, kept: Tensor, moments: Moments, norm: str | None, damping: float) -> None:
    layer = model.get_submodule(name)
    if getattr(layer, "bias", None) is None and norm is None:
        moments = _without_constant(moments)
    matrix = layer.get_parameter("weight").detach().flatten(1).cpu().float()
    write_fitted(model, name, matrix, kept, moments, norm, _mean_output(matrix, moments.mean), damping)


def write_fitted(
    model: nn.Module,
    name: str,
    matrix: Tensor,
    kept: Tensor,
    moments: Moments,
    norm: str | None,
    target: Tensor,
    damping: float = DAMPING,
) -> None:
    """Fit `matrix` (out, in) to `kept` and write it into the layer; what is missing to the mean output `target` (out,)
    goes into the bias, or the running mean of `norm`, or nowhere."""
    layer = model.get_submodule(name)
    weight, bias = layer.get_parameter("weight"), getattr(layer, "bias", None)
    found = _fitted(matrix, kept.cpu().flatten(1), moments, damping)
    shift = target - _mean_output(found, moments.mean)
    weight.copy_(found.reshape(weight.shape))
    if bias is not None:
        bias += shift.to(bias)
    elif norm is not None:
        mean = model.get_submodule(norm).get_buffer("running_mean")
        mean -= shift.to(mean)


def _fitted(matrix: Tensor, kept: Tensor, moments: Moments, damping: float) -> Tensor:
    """(out, in): the groups of a convolution one by one, each with its own covariance."""
    covariances = moments.covariance if moments.covariance.dim() == 3 else moments.covariance[None]
    rows = zip(matrix.chunk(len(covariances)), kept.chunk(len(covariances)), covariances, strict=True)
    return torch.cat([refit(dense, stays, covariance, damping) for dense, stays, covariance in rows])


def _mean_output(matrix: Tensor, mean: Tensor) -> Tensor:
    """(out,): what `matrix` makes of the mean input of the group that each row belongs to."""
    means = mean if mean.dim() == 2 else mean[None]
    return (matrix * means.repeat_interleave(len(matrix) // len(means), 0)).sum(1)


def _without_constant(moments: Moments) -> Moments:
    """Moments around zero: what a layer without a bias can be fitted to."""
    second = moments.covariance + moments.mean[..., :, None] * moments.mean[..., None, :]
    return Moments(torch.zeros_like(moments.mean), second)
