"""What is about to go, as the layers that lose inputs or weights see it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from crepe.vision.graph import Graph
from crepe.vision.group import Group
from crepe.vision.moments import can_unfold


@dataclass(frozen=True)
class Removal:
    """kept: layer -> bool, of the shape of its weight, False where an input channel is about to go or a weight is about
    to be zeroed; norms: layer -> batch norm that alone reads it."""

    kept: dict[str, Tensor]
    norms: dict[str, str]


def removal_of(
    graph: Graph, groups: Sequence[Group], units: Mapping[str, Tensor], masks: Mapping[str, Tensor]
) -> Removal:
    """groups, units: groups to be cut with the units that stay; masks: parameter -> True = kept.

    Layers that read several groups lose the channels of all of them. Convolutions with groups that read a group that is
    cut stay out: which of their inputs go differs from group to group. So do layers that do not run, of whose inputs
    nothing is known.
    """
    kept = {name.removesuffix(".weight"): mask.clone() for name, mask in masks.items() if name.endswith(".weight")}
    for group in groups:
        removed = group.removed(units[group.name])
        for member in group.users:
            layer = graph.model.get_submodule(member.name)
            if getattr(layer, "groups", 1) == 1 and len(removed):
                whole = torch.ones_like(_weight(layer), dtype=torch.bool, device="cpu")
                kept.setdefault(member.name, whole)[:, member.at(removed)] = False
    found = {n: mask for n, mask in kept.items() if can_unfold(graph.model.get_submodule(n)) and graph.runs(n)}
    norms = {name: graph.norm_behind(name) for name in found}
    return Removal(found, {name: norm for name, norm in norms.items() if norm is not None})


def _weight(layer: nn.Module) -> Tensor:
    return layer.get_parameter("weight")
