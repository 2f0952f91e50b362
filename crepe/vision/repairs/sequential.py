"""Least squares layer by layer: each layer is fitted to what the dense network gives, on the inputs that the layers
already pruned before it leave."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from crepe.errors import CrepeError
from crepe.models.blocks import Block
from crepe.pipeline.walk import Walk
from crepe.refine.gram import DAMPING, damped
from crepe.vision.compensation import Moments
from crepe.vision.moments import input_windows
from crepe.vision.readers import write_fitted
from crepe.vision.removal import Removal
from crepe.vision.repairs.base import REPAIRS, Batches, Repair


@dataclass(frozen=True, eq=False)
class Paired:
    """Of the inputs x of a layer in the dense network and z in the pruned one, groups apart. dense, pruned: means
    (groups, in); covariance: of z, (groups, in, in); cross: of x with z, (groups, in, in)."""

    dense: Tensor
    pruned: Tensor
    covariance: Tensor
    cross: Tensor


def sequential(model: nn.Module, removal: Removal, batches: Batches) -> None:
    """Fit every layer that loses inputs or weights, in the order in which they run, in place.

    All batches stand before the same layer at once, dense and pruned, so their activations have to fit in memory.

    Raises:
        CrepeError: a layer does not run exactly once in a forward.
    """
    if not removal.kept:
        return
    model.eval()
    device = next(model.parameters()).device
    pixels = [one.to(device) for one, _ in batches]
    blocks = [Block(name, model.get_submodule(name)) for name in _in_order(model, list(removal.kept), pixels[0][:1])]
    walk = Walk(model, blocks, pixels, streams=2, forward=lambda network, batch: network(batch))
    with walk.started(), torch.no_grad():
        for block in blocks:
            paired = _paired(walk, block)
            walk.advance(block, stream=0)
            fit(model, block.name, removal.kept[block.name], paired, removal.norms.get(block.name))
            walk.advance(block, stream=1)


def fit(model: nn.Module, name: str, kept: Tensor, paired: Paired, norm: str | None, damping: float = DAMPING) -> None:
    """Write min ||W x - V z||^2 + d ||V - W||^2 over the weights V that are zero where not `kept` into a layer.

    Without a support that is W + W (C_xz - C_zz) (C_zz + d)^-1; fitted to the support by the same rule as all other
    least squares. What the mean changes by goes into the bias or the batch norm behind, as in `fit_to_kept`.
    """
    layer = model.get_submodule(name)
    weight = layer.get_parameter("weight")
    if getattr(layer, "bias", None) is None and norm is None:
        paired = _around_zero(paired)
    groups = len(paired.covariance)
    dense = weight.detach().cpu().float().reshape(groups, -1, paired.covariance.shape[-1])
    safe = torch.stack([damped(one, damping) for one in paired.covariance])
    ideal = dense + torch.linalg.solve(safe, (dense @ (paired.cross - paired.covariance)).mT).mT
    target = (dense * paired.dense[:, None]).sum(2).flatten()
    moments = Moments(paired.pruned, paired.covariance)
    write_fitted(model, name, ideal.flatten(0, 1), kept, moments, norm, target, damping)


def _around_zero(paired: Paired) -> Paired:
    """For a layer that can take up no constant."""
    x, z = paired.dense, paired.pruned
    second, cross = (mean[:, :, None] * z[:, None, :] for mean in (z, x))
    zero = torch.zeros_like(x)
    return Paired(zero, zero, paired.covariance + second, paired.cross + cross)


def _in_order(model: nn.Module, names: list[str], image: Tensor) -> list[str]:
    """`names` in the order in which they run."""
    order: list[str] = []
    hooks = [
        model.get_submodule(name).register_forward_pre_hook(lambda *_, name=name: order.append(name)) for name in names
    ]
    try:
        with torch.no_grad():
            model(image)
    finally:
        for hook in hooks:
            hook.remove()
    for name in names:
        if order.count(name) != 1:
            raise CrepeError(
                f"layer {name!r} runs {order.count(name)} times in one forward: use --refine compensate instead"
            )
    return order


def _paired(walk: Walk, block: Block) -> Paired:
    sums: list[Tensor] = []
    for one, other in zip(walk.calls(block, 0), walk.calls(block, 1), strict=True):
        x, z = input_windows(block.module, one.args[0]), input_windows(block.module, other.args[0])
        parts = [x.sum(1), z.sum(1), z.mT @ z, x.mT @ z, torch.tensor(x.shape[1])]
        doubles = [part.double().cpu() for part in parts]
        sums = [total + part for total, part in zip(sums, doubles, strict=True)] if sums else doubles
    x_mean, z_mean, second, cross = (part / sums[4] for part in sums[:4])
    covariance = second - z_mean[:, :, None] * z_mean[:, None, :]
    return Paired(
        x_mean.float(), z_mean.float(), covariance.float(), (cross - x_mean[:, :, None] * z_mean[:, None, :]).float()
    )


REPAIRS.add("sequential", Repair(before=sequential))
