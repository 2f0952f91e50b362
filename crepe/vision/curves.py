"""What the model's outputs lose with shares of one layer alone, and masks by shares that were measured so."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from crepe.allocation.curves import Curve
from crepe.errors import CrepeError
from crepe.masks.select import kept_count
from crepe.vision.evidence import Evidence
from crepe.vision.group import Group
from crepe.vision.methods import FilterPart, Layer, MaskPart
from crepe.vision.recipe import ImageChoices
from crepe.vision.widths.measured import TRIED


def filter_curve(part: FilterPart, group: Group, layer: Layer, evidence: Evidence) -> Curve:
    """(share of the group's channels, loss), rising from (0, 0)."""
    found = [(0.0, 0.0)]
    for share in TRIED:
        keep = max(kept_count(group.units, share), 1)
        if 1 - keep / group.units > found[-1][0]:
            loss = evidence.loss([group], {group.name: chosen_units(part, layer, keep)}, {})
            found.append((1 - keep / group.units, loss))
    return found


def mask_curve(part: MaskPart, layer: Layer, evidence: Evidence) -> Curve:
    """(share of the layer's weights, loss), rising from (0, 0), up to the share that the part refuses: of three taps
    0.75 cannot go where one has to stay."""
    found = [(0.0, 0.0)]
    for share in TRIED:
        try:
            masks = part.select({layer.name: layer}, share)
        except CrepeError:
            break
        for name, mask in masks.items():
            removed = 1 - float(mask.double().mean())
            if removed > found[-1][0]:
                found.append((removed, evidence.loss([], {}, {f"{name}.weight": mask.reshape(evidence.shape(name))})))
    return found


def divided(
    part: MaskPart, layers: Mapping[str, Layer], choices: ImageChoices, evidence: Evidence | None
) -> Mapping[str, Tensor]:
    """Masks by layer: the method divides the sparsity itself, unless it is to be measured what each layer can lose."""
    if not choices.rule.needs_curves or evidence is None:
        return part.select(layers, choices.sparsity)
    curves = {name: mask_curve(part, layer, evidence) for name, layer in layers.items()}
    shares = choices.rule(list(layers.values()), choices.sparsity, curves)
    return {n: mask for name, layer in layers.items() for n, mask in part.select({name: layer}, shares[name]).items()}


def chosen_units(part: FilterPart, layer: Layer, keep: int) -> Tensor:
    """The `keep` units that the part chooses, rising.

    Raises:
        CrepeError: the part does not choose as many different ones.
    """
    kept = part.select(layer, keep).cpu()
    different = len(set(kept.tolist()))
    if len(kept) != keep or different != keep:
        raise CrepeError(f"the method keeps {different} channels of {layer.name!r}, asked for {keep}")
    return kept.sort().values
