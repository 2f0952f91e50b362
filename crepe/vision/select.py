"""From a method and a budget to the channels that stay and the weights that are zeroed. Nothing is changed here."""

from __future__ import annotations

import copy
import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor, nn

from crepe.allocation.curves import Curve
from crepe.errors import CrepeError, UsageError
from crepe.masks.select import kept_count
from crepe.models.views import Skipped
from crepe.vision.attention import Attention, cut_heads, find_attentions, head_masks, heads_of
from crepe.vision.cost import Shrinking
from crepe.vision.cut import TOLERANCE, distance, faithful, hold
from crepe.vision.evidence import Evidence
from crepe.vision.graph import Graph
from crepe.vision.group import Group
from crepe.vision.layers import kind_of, layer_of
from crepe.vision.load import logits_of
from crepe.vision.methods import FilterPart, HeadChoice, HeadPart, Layer, MaskPart
from crepe.vision.moments import can_unfold
from crepe.vision.recipe import ImageChoices
from crepe.vision.widths.base import Rule, widths
from crepe.vision.widths.measured import TRIED

# Halvings of the interval of shares until the MACs target is met as closely as whole channels can.
_HALVINGS = 40


@dataclass(frozen=True)
class Selection:
    """What goes. groups: to be cut; kept: group name -> units that stay, rising; masks: parameter name -> True = kept,
    for weights that are zeroed in place; patterns: their patterns; skipped: what stays dense, with reasons; heads:
    attentions with the dimensions that their heads keep."""

    groups: list[Group]
    kept: dict[str, Tensor]
    masks: dict[str, Tensor] = field(default_factory=dict)
    patterns: dict[str, str] = field(default_factory=dict)
    skipped: list[Skipped] = field(default_factory=list)
    heads: list[tuple[Attention, HeadChoice]] = field(default_factory=list)


def candidates(graph: Graph, part: FilterPart, choices: ImageChoices) -> tuple[list[Group], list[Skipped]]:
    """Groups that `part` may cut, and the others with reasons.

    Raises:
        UsageError: --include or --exclude name no layer.
    """
    recipe = choices.recipe
    names = [group.name for group in graph.groups]
    for flag, patterns in (("--include", recipe.include), ("--exclude", recipe.exclude)):
        for pattern in patterns:
            if not any(_matches(name, (pattern,)) for name in names):
                raise UsageError(f"{flag} {pattern!r} matches no layer: --dry-run lists them")
    found, skipped = [], []
    for group in graph.groups:
        reason = _reason(graph.model, group, part, recipe.include, recipe.exclude)
        if reason is None:
            found.append(group)
        else:
            skipped.append(_skipped(graph.model, group.name, reason))
    return found, skipped


def select(
    graph: Graph,
    choices: ImageChoices,
    example: Tensor,
    statistics: Mapping[str, Mapping[str, Tensor]],
    evidence: Evidence | None = None,
) -> Selection:
    """Apply every part of the method to the dense weights.

    statistics: group name -> statistics of its channels, (width,) each. evidence: of the calibration images, where the
    method or the allocation needs it.

    Raises:
        CrepeError: nothing can be cut, or a layer would be emptied.
    """
    found = Selection([], {})
    for part in choices.method.parts:
        if isinstance(part, FilterPart):
            found = _joined(found, _filters(graph, part, choices, example, statistics, evidence))
        elif isinstance(part, MaskPart):
            found = _joined(found, _masked(graph.model, part, choices, evidence))
        else:
            found = _joined(found, _heads(graph.model, part, choices, example))
    if not found.groups and not found.masks and not found.heads:
        reasons = "; ".join(f"{s.name}: {s.reason}" for s in found.skipped[:2])
        raise CrepeError(f"method {choices.recipe.method!r} finds nothing to prune in this model ({reasons})")
    return found


def _joined(first: Selection, second: Selection) -> Selection:
    """Both parts of a method; what one of them prunes is not skipped, and no group is cut twice."""
    new = [group for group in second.groups if group.name not in first.kept]
    groups, masks = [*first.groups, *new], {**first.masks, **second.masks}
    heads = [*first.heads, *second.heads]
    pruned = {*masks, *(f"{member.name}.weight" for group in groups for member in group.makers)}
    pruned |= {f"{name}.weight" for found, _ in heads for name in (found.query, found.key, found.value)}
    skipped = {s.name: s for s in (*second.skipped, *first.skipped) if s.name not in pruned}
    kept, patterns = {**second.kept, **first.kept}, {**first.patterns, **second.patterns}
    return Selection(groups, kept, masks, patterns, list(skipped.values()), heads)


def _filters(
    graph: Graph,
    part: FilterPart,
    choices: ImageChoices,
    example: Tensor,
    statistics: Mapping[str, Mapping[str, Tensor]],
    evidence: Evidence | None,
) -> Selection:
    groups, skipped = candidates(graph, part, choices)
    layers = {group.name: layer_of(graph.model, group, statistics.get(group.name)) for group in groups}
    if choices.rule.needs_curves and evidence is not None:
        curves = {group.name: _filter_curve(part, group, layers[group.name], evidence) for group in groups}
        choices = replace(choices, rule=Rule(partial(choices.rule, curves=curves)))
    keep = _keep(graph.model, groups, layers, choices, example)
    narrower = [group for group in groups if keep[group.name] < group.units]
    kept = {group.name: _checked(part, layers[group.name], keep[group.name]) for group in narrower}
    sound = faithful(graph.model, narrower, kept, example)
    unsound = {group.name for group in narrower} - {group.name for group in sound}
    why = "the network would compute something else without its channels"
    skipped += [_skipped(graph.model, name, why) for name in sorted(unsound)]
    return Selection(sound, {group.name: kept[group.name] for group in sound}, skipped=skipped)


def _filter_curve(part: FilterPart, group: Group, layer: Layer, evidence: Evidence) -> Curve:
    """What the model's outputs lose with shares of the channels of one group: (share, loss), rising."""
    found = [(0.0, 0.0)]
    for share in TRIED:
        keep = max(kept_count(group.units, share), 1)
        if 1 - keep / group.units > found[-1][0]:
            loss = evidence.loss([group], {group.name: _checked(part, layer, keep)}, {})
            found.append((1 - keep / group.units, loss))
    return found


def _checked(part: FilterPart, layer: Layer, keep: int) -> Tensor:
    kept = part.select(layer, keep).cpu()
    different = len(set(kept.tolist()))
    if len(kept) != keep or different != keep:
        raise CrepeError(f"the method keeps {different} channels of {layer.name!r}, asked for {keep}")
    return kept.sort().values


def _keep(
    model: nn.Module, groups: Sequence[Group], layers: Mapping[str, Layer], choices: ImageChoices, example: Tensor
) -> dict[str, int]:
    """Units that each group keeps: from the sparsity, or so that the wanted share of MACs is left."""
    found, step = list(layers.values()), choices.recipe.round_to or 1
    if choices.macs is None:
        return widths(found, choices.rule(found, choices.sparsity), step, False)
    cost = Shrinking(model, groups, example)
    target = choices.macs * cost.dense

    def keep_at(share: float) -> dict[str, int]:
        return widths(found, choices.rule(found, share), step, True)

    if cost.after(keep_at(1.0)) > target:
        least = cost.after(keep_at(1.0)) / cost.dense
        raise CrepeError(f"macs = {choices.macs:g} is out of reach: with one channel per layer {least:.3f} is left")
    low, high = 0.0, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if cost.after(keep_at(middle)) <= target else (middle, high)
    return keep_at(high)


def _masked(model: nn.Module, part: MaskPart, choices: ImageChoices, evidence: Evidence | None) -> Selection:
    """Masks of weights inside layers that keep their shape; the layer that sees the pixels stays dense."""
    recipe, layers, skipped = choices.recipe, {}, []
    names = [name for name, module in model.named_modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    for name in names:
        module = model.get_submodule(name)
        weight: Tensor = module.weight.detach().float()  # type: ignore[operator]
        rows = weight[:, :, None, None] if weight.dim() == 2 else weight
        layer = Layer(name, (rows,), kind_of(module))
        if name == names[0] and not _matches(name, recipe.include):
            skipped.append(_skipped(model, name, "it is the first layer"))
        elif _matches(name, recipe.exclude):
            skipped.append(_skipped(model, name, "excluded"))
        elif not part.suits(layer):
            skipped.append(_skipped(model, name, f"the method leaves {layer.kind} layers as they are"))
        elif "moments" in part.needs and not can_unfold(module):
            skipped.append(_skipped(model, name, "its inputs cannot be unfolded"))
        else:
            layers[name] = layer
    if "moments" in part.needs and evidence is not None:
        moments = evidence.moments(list(layers))
        layers = {n: replace(layer, moments=moments[n], gain=evidence.gain(n)) for n, layer in layers.items()}
    found = _divided(part, layers, choices, evidence) if layers else {}
    masks = {f"{n}.weight": m.reshape(model.get_submodule(n).weight.shape) for n, m in found.items()}  # type: ignore[arg-type]
    return Selection([], {}, masks, dict.fromkeys(masks, part.pattern), skipped)


def _divided(
    part: MaskPart, layers: Mapping[str, Layer], choices: ImageChoices, evidence: Evidence | None
) -> Mapping[str, Tensor]:
    """Masks by layer: the method divides the sparsity itself, unless it is to be measured what each layer can lose."""
    if not choices.rule.needs_curves or evidence is None:
        return part.select(layers, choices.sparsity)
    curves = {name: _mask_curve(part, layer, evidence) for name, layer in layers.items()}
    shares = choices.rule(list(layers.values()), choices.sparsity, curves)
    return {n: mask for name, layer in layers.items() for n, mask in part.select({name: layer}, shares[name]).items()}


def _mask_curve(part: MaskPart, layer: Layer, evidence: Evidence) -> Curve:
    """`_filter_curve` for weights of one layer."""
    found = [(0.0, 0.0)]
    for share in TRIED:
        for name, mask in part.select({layer.name: layer}, share).items():
            removed = 1 - float(mask.double().mean())
            if removed > found[-1][0]:
                found.append((removed, evidence.loss([], {}, {f"{name}.weight": mask.reshape(evidence.shape(name))})))
    return found


def _heads(model: nn.Module, part: HeadPart, choices: ImageChoices, example: Tensor) -> Selection:
    """Dimensions inside heads, where the smaller heads compute what the masked ones do."""
    found, skipped = [], []
    for index, attention in enumerate(find_attentions(model)):
        choice = None
        if not _matches(attention.name, choices.recipe.exclude):
            choice = part.select(heads_of(model, attention, index), choices.sparsity)
        if choice is None:
            skipped.append(_skipped(model, attention.query, "the method leaves this attention as it is"))
        elif choice.query_key.shape != choice.value_output.shape:
            skipped.append(_skipped(model, attention.query, "its module needs queries and values of one width"))
        else:
            found.append((attention, choice))
    if found and not _heads_agree(model, found, example):
        names = ", ".join(attention.name for attention, _ in found[:2])
        raise CrepeError(f"the heads of {names}, ... cannot be made smaller in this module: choose another method")
    return Selection([], {}, skipped=skipped, heads=found)


def _heads_agree(model: nn.Module, found: list[tuple[Attention, HeadChoice]], example: Tensor) -> bool:
    smaller, masked = copy.deepcopy(model), copy.deepcopy(model)
    for attention, choice in found:
        hold(masked, head_masks(model, attention, choice))
        cut_heads(smaller, attention, choice)
    with torch.no_grad():
        try:
            return distance(logits_of(masked(example)), logits_of(smaller(example))) <= TOLERANCE
        except (RuntimeError, ValueError):
            return False


def _reason(
    model: nn.Module, group: Group, part: FilterPart, include: Sequence[str], exclude: Sequence[str]
) -> str | None:
    if group.obstacle is not None:
        return group.obstacle
    if _matches(group.name, exclude):
        return "excluded"
    if group.tied and not part.seeks_tied and not _matches(group.name, include):
        return f"additions tie its channels to {len(group.makers) - 1} other layers"
    if group.units < 2:
        return "it has a single channel"
    if not part.suits(layer_of(model, group)):
        return "the method leaves layers of this kind as they are"
    return None


def _skipped(model: nn.Module, name: str, reason: str) -> Skipped:
    weight: Tensor = model.get_submodule(name).weight  # type: ignore[assignment]
    return Skipped(f"{name}.weight", tuple(weight.shape), reason)


def _matches(name: str, patterns: Sequence[str]) -> bool:
    """A layer by its path or by that of its weight."""
    return any(fnmatch.fnmatch(name, p) or fnmatch.fnmatch(f"{name}.weight", p) for p in patterns)


def zeros_after(model: nn.Module, selection: Selection) -> dict[str, Tensor]:
    """Masks of what is zeroed in place, for a model whose channels have been cut: the weights that are not zero."""
    return {name: model.get_parameter(name).detach() != 0 for name in selection.masks}
