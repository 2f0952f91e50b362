"""Removing channels: as zeros that stay in place, or for good, and the proof that both compute the same."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from crepe.errors import CrepeError
from crepe.masks.select import apply_mask
from crepe.models.draws import seeded
from crepe.vision.graph import Graph
from crepe.vision.group import Group
from crepe.vision.load import outputs_of

TOLERANCE = 1e-5


def channel_masks(model: nn.Module, groups: Sequence[Group], kept: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Masks, True = kept, of every parameter that makes a removed channel, batch-norm scale and shift included.

    kept: group name -> kept units. Returns: parameter name -> bool tensor of its shape.
    """
    masks: dict[str, Tensor] = {}
    for group in groups:
        removed = group.removed(kept[group.name])
        for member in (*group.makers, *group.followers, *group.norms):
            for leaf, parameter in model.get_submodule(member.name).named_parameters(recurse=False):
                name = f"{member.name}.{leaf}"
                mask = masks.setdefault(name, torch.ones_like(parameter, dtype=torch.bool))
                mask[member.at(removed).to(mask.device)] = False
    return masks


def hold(model: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Set what is masked to +0.0, in place."""
    with torch.no_grad():
        for name, mask in masks.items():
            parameter = model.get_parameter(name)
            parameter.copy_(apply_mask(parameter, mask.to(parameter.device)))


def cut(graph: Graph, groups: Sequence[Group], kept: Mapping[str, Tensor]) -> None:
    """Remove all but the `kept` units of each group from the graph's model, in place."""
    graph.cut({group.name: group.removed(kept[group.name]) for group in groups})


def faithful(model: nn.Module, groups: Sequence[Group], kept: Mapping[str, Tensor], example: Tensor) -> list[Group]:
    """Those of `groups` that can be removed so that the smaller network computes what the masked one does.

    The graph proposes what hangs together and the numbers decide: masked and cut copies run on `example`.
    """
    if _agrees(model, groups, kept, example):
        return list(groups)
    found = [group for group in groups if _agrees(model, [group], kept, example)]
    if not _agrees(model, found, kept, example):
        names = ", ".join(group.name for group in found[:3])
        raise CrepeError(f"layers {names}, ... cannot be cut together: cut them one by one with --include")
    return found


def _agrees(model: nn.Module, groups: Sequence[Group], kept: Mapping[str, Tensor], example: Tensor) -> bool:
    smaller, masked = copy.deepcopy(model).eval(), copy.deepcopy(model).eval()
    hold(masked, channel_masks(model, groups, kept))
    cut(Graph(smaller, example), groups, kept)
    try:
        found = answer(smaller, example)
    except (RuntimeError, ValueError):
        return False
    return distance(answer(masked, example), found) <= TOLERANCE


def answer(model: nn.Module, example: Tensor) -> Tensor:
    """What the model makes of `example`. One that draws at random, such as a masked autoencoder, draws the same every
    time."""
    with seeded(0, example.device), torch.no_grad():
        return outputs_of(model(example))


def distance(reference: Tensor, found: Tensor) -> float:
    """max |reference - found|, relative where the reference is larger than 1; infinite where shapes differ."""
    if reference.shape != found.shape:
        return float("inf")
    return float((reference - found).abs().max() / reference.abs().max().clamp(min=1))
