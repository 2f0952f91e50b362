"""Groups as the selection methods see them."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from crepe.vision.group import Group, Member
from crepe.vision.methods.base import Layer


def layer_of(model: nn.Module, group: Group, statistics: Mapping[str, Tensor] | None = None) -> Layer:
    """The weights of every maker and depth-wise follower, one row per unit.

    statistics: (width,) each; where grouped convolutions fold the channels, their parts are added up.
    """
    weights = [part for m in (*group.makers, *group.followers) for part in _parts(_weight(model, m), group.folds)]
    scales = [part for m in group.norms for part in _parts(_scale(model, m).abs(), group.folds)]
    folded = {name: _folded(values, group) for name, values in (statistics or {}).items()}
    kind = kind_of(model.get_submodule(group.name))
    return Layer(group.name, tuple(weights), kind, group.tied, tuple(scales), folded)


def kind_of(layer: nn.Module) -> str:
    if not isinstance(layer, nn.Conv2d):
        return "linear"
    if layer.groups > 1:
        return "depthwise" if layer.groups == layer.out_channels else "grouped"
    return "pointwise" if layer.kernel_size == (1, 1) else "conv"


def _weight(model: nn.Module, member: Member) -> Tensor:
    """(width, in, kh, kw) float32: the rows of a layer in the order of the group's channels."""
    weight: Tensor = model.get_submodule(member.name).weight.detach().float()  # type: ignore[operator]
    rows = weight[member.indices[:, 0].to(weight.device)]
    return rows[:, :, None, None] if rows.dim() == 2 else rows


def _scale(model: nn.Module, member: Member) -> Tensor:
    scale: Tensor = model.get_submodule(member.name).weight.detach().float()  # type: ignore[operator]
    return scale[member.indices[:, 0].to(scale.device)]


def _parts(rows: Tensor, folds: int) -> tuple[Tensor, ...]:
    return rows.chunk(folds) if folds > 1 else (rows,)


def _folded(values: Tensor, group: Group) -> Tensor:
    return values.view(group.folds, group.units).sum(0)
