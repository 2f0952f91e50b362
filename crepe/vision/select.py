"""From a method and a budget to the channels that stay and the weights that are zeroed. Nothing is changed here."""

from __future__ import annotations

import copy
import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from torch import Tensor, nn

from crepe.errors import CrepeError, UsageError
from crepe.masks import ColBlock, parse_pattern
from crepe.models.views import Skipped
from crepe.vision.attention import Attention, cut_heads, find_attentions, head_masks, heads_of
from crepe.vision.budget import HeadCost, least_share
from crepe.vision.cost import Shrinking
from crepe.vision.curves import chosen_units, divided, filter_curve
from crepe.vision.cut import TOLERANCE, answer, distance, faithful, hold
from crepe.vision.evidence import Evidence
from crepe.vision.graph import Graph
from crepe.vision.group import Group
from crepe.vision.layers import kind_of, layer_of
from crepe.vision.methods import FilterPart, HeadChoice, HeadPart, Layer, MaskPart
from crepe.vision.moments import can_unfold
from crepe.vision.recipe import ImageChoices
from crepe.vision.reordered import reordered
from crepe.vision.widths.base import Rule, widths


@dataclass(frozen=True)
class Selection:
    """What goes. groups: to be cut; kept: group name -> units that stay, rising; masks: parameter name -> True = kept,
    for weights that are zeroed in place; patterns: their patterns; skipped: what stays dense, with reasons; heads:
    attentions with the dimensions that their heads keep; orders: layer -> order of its rows (out,), where tiles are not
    made of neighbouring rows."""

    groups: list[Group]
    kept: dict[str, Tensor]
    masks: dict[str, Tensor] = field(default_factory=dict)
    patterns: dict[str, str] = field(default_factory=dict)
    skipped: list[Skipped] = field(default_factory=list)
    heads: list[tuple[Attention, HeadChoice]] = field(default_factory=list)
    orders: dict[str, Tensor] = field(default_factory=dict)


def candidates(graph: Graph, part: FilterPart, choices: ImageChoices) -> tuple[list[Group], list[Skipped]]:
    """Groups that `part` may cut, and the others with reasons."""
    recipe = choices.recipe
    found, skipped = [], []
    first = _first(graph, part) if part.spares_first else None
    for group in graph.groups:
        reason = _reason(graph.model, group, part, recipe.include, recipe.exclude)
        if reason is None and group.name == first and not _named(group, recipe.include):
            reason = "the method leaves the first of these layers as it is"
        if reason is None:
            found.append(group)
        else:
            skipped.append(_skipped(graph.model, group.name, reason))
    return found, skipped


def _first(graph: Graph, part: FilterPart) -> str | None:
    """The first group that the part could cut, whatever the flags say."""
    fitting = (g.name for g in graph.groups if _reason(graph.model, g, part, (), ()) is None)
    return next(fitting, None)


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
        UsageError: --include or --exclude name no layer. CrepeError: nothing can be cut, or a layer would be emptied.
    """
    _require_matches(graph, choices)
    found, saved, share = Selection([], {}), 0, choices.sparsity
    filtering = _with_curves(graph, choices, statistics, evidence)
    cost = None if choices.macs is None else HeadCost(graph.model, example)
    if cost is not None:
        share = _share_of_heads(graph, filtering, example, statistics, cost)
    for part in choices.method.parts:
        if isinstance(part, FilterPart):
            found = _joined(found, _filters(graph, part, filtering, example, statistics, saved))
        elif isinstance(part, MaskPart):
            found = _joined(found, _masked(graph, part, choices, evidence))
        else:
            found = _joined(found, _heads(graph.model, part, choices, example, share))
            saved = 0 if cost is None else cost.saved(found.heads)
    if not found.groups and not found.masks and not found.heads:
        reasons = "; ".join(f"{s.name}: {s.reason}" for s in found.skipped[:2])
        raise CrepeError(f"method {choices.recipe.method!r} finds nothing to prune in this model ({reasons})")
    return found


def _require_matches(graph: Graph, choices: ImageChoices) -> None:
    layers = [n for n, module in graph.model.named_modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    names = [*layers, *(group.name for group in graph.groups), *(a.name for a in find_attentions(graph.model))]
    recipe = choices.recipe
    for flag, patterns in (("--include", recipe.include), ("--exclude", recipe.exclude)):
        for pattern in patterns:
            if not any(_matches(name, (pattern,)) for name in names):
                raise UsageError(f"{flag} {pattern!r} matches no layer: --dry-run lists them")


def _joined(first: Selection, second: Selection) -> Selection:
    """Both parts of a method; what one of them prunes is not skipped, and no group is cut twice."""
    new = [group for group in second.groups if group.name not in first.kept]
    groups, masks = [*first.groups, *new], {**first.masks, **second.masks}
    heads = [*first.heads, *second.heads]
    pruned = {*masks, *(f"{member.name}.weight" for group in groups for member in group.makers)}
    pruned |= {f"{name}.weight" for found, _ in heads for name in (found.query, found.key, found.value)}
    skipped = {s.name: s for s in (*second.skipped, *first.skipped) if s.name not in pruned}
    kept, patterns = {**second.kept, **first.kept}, {**first.patterns, **second.patterns}
    return Selection(groups, kept, masks, patterns, list(skipped.values()), heads, {**first.orders, **second.orders})


def _with_curves(
    graph: Graph, choices: ImageChoices, statistics: Mapping[str, Mapping[str, Tensor]], evidence: Evidence | None
) -> ImageChoices:
    """The choices for filters, with a rule that knows what every group costs, where it wants to know."""
    if not choices.rule.needs_curves or evidence is None:
        return choices
    curves = {}
    for part in (part for part in choices.method.parts if isinstance(part, FilterPart)):
        for group in candidates(graph, part, choices)[0]:
            layer = layer_of(graph.model, group, statistics.get(group.name))
            curves[group.name] = filter_curve(part, group, layer, evidence)
    return replace(choices, rule=Rule(partial(choices.rule, curves=curves)))


def _share_of_heads(
    graph: Graph,
    choices: ImageChoices,
    example: Tensor,
    statistics: Mapping[str, Mapping[str, Tensor]],
    cost: HeadCost,
) -> float:
    """The share that heads and channels would lose alike to meet the MACs target; 0 for a method without heads.

    Heads go in steps, so the target can be missed from below; the channels then keep what the heads left over.

    Raises:
        CrepeError: more is left at the smallest widths.
    """
    heads = [part for part in choices.method.parts if isinstance(part, HeadPart)]
    if not heads:
        return 0.0
    widths_of = [
        _Widths(graph, part, choices, example, statistics)
        for part in choices.method.parts
        if isinstance(part, FilterPart)
    ]

    dense, macs_kept = cost.dense, choices.macs or 1.0

    def after(share: float) -> float:
        saved = sum(cost.saved(_head_choices(graph.model, part, choices, share)[0]) for part in heads)
        return dense - saved - sum(dense - found.cost.after(found.keep_at(share)) for found in widths_of)

    if after(1.0) > macs_kept * dense:
        raise CrepeError(
            f"macs = {macs_kept:g} is out of reach: with the fewest channels that allocation "
            f"{choices.recipe.allocation!r} leaves and the smallest heads {after(1.0) / dense:.3f} is left"
        )
    return least_share(after, macs_kept * dense)


class _Widths:
    """How many units the groups of one part keep at a share, and what the network then costs. State only."""

    def __init__(
        self,
        graph: Graph,
        part: FilterPart,
        choices: ImageChoices,
        example: Tensor,
        statistics: Mapping[str, Mapping[str, Tensor]],
    ) -> None:
        self.groups, self.skipped = candidates(graph, part, choices)
        self.layers = {g.name: layer_of(graph.model, g, statistics.get(g.name)) for g in self.groups}
        self.cost = Shrinking(graph.model, self.groups, example)
        self._choices = choices

    def keep_at(self, share: float, at_least_one: bool = True) -> dict[str, int]:
        found = list(self.layers.values())
        return widths(found, self._choices.rule(found, share), self._choices.recipe.round_to or 1, at_least_one)

    def keep(self, saved: int) -> dict[str, int]:
        """From the sparsity, or so that the wanted share of MACs is left, of which heads have saved `saved`."""
        if self._choices.macs is None:
            return self.keep_at(self._choices.filter_sparsity, False)
        least = self.cost.after(self.keep_at(1.0)) - saved
        if least > self._choices.macs * self.cost.dense:
            raise CrepeError(
                f"macs = {self._choices.macs:g} is out of reach: with the fewest channels that allocation "
                f"{self._choices.recipe.allocation!r} leaves, {least / self.cost.dense:.3f} is left"
            )
        target = self._choices.macs * self.cost.dense + saved
        return self.keep_at(least_share(lambda share: self.cost.after(self.keep_at(share)), target))


def _filters(
    graph: Graph,
    part: FilterPart,
    choices: ImageChoices,
    example: Tensor,
    statistics: Mapping[str, Mapping[str, Tensor]],
    saved: int,
) -> Selection:
    found = _Widths(graph, part, choices, example, statistics)
    keep, skipped = found.keep(saved), found.skipped
    narrower = [group for group in found.groups if keep[group.name] < group.units]
    kept = {group.name: chosen_units(part, found.layers[group.name], keep[group.name]) for group in narrower}
    sound = faithful(graph.model, narrower, kept, example)
    unsound = {group.name for group in narrower} - {group.name for group in sound}
    why = "the network would compute something else without its channels"
    skipped += [_skipped(graph.model, name, why) for name in sorted(unsound)]
    return Selection(sound, {group.name: kept[group.name] for group in sound}, skipped=skipped)


def _masked(graph: Graph, part: MaskPart, choices: ImageChoices, evidence: Evidence | None) -> Selection:
    """Masks of weights inside layers that keep their shape; the layer that sees the pixels stays dense."""
    model, recipe, layers, skipped = graph.model, choices.recipe, {}, []
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
        elif "moments" in part.needs and not graph.runs(name):
            skipped.append(_skipped(model, name, "it does not run as a layer, so that nothing is known of its inputs"))
        else:
            layers[name] = layer
    if "moments" in part.needs and evidence is not None:
        moments = evidence.moments(list(layers))
        layers = {n: replace(layer, moments=moments[n], gain=evidence.gain(n)) for n, layer in layers.items()}
    if part.score is not None:
        layers = {n: replace(layer, statistics={"score": part.score(layer)}) for n, layer in layers.items()}
    found = divided(part, layers, choices, evidence) if layers else {}
    orders: dict[str, Tensor] = {}
    pattern = parse_pattern(part.pattern)
    if recipe.reorder_rows and isinstance(pattern, ColBlock):
        matrices = {name: layers[name].weight.flatten(1) for name in found}
        found, orders = reordered(matrices, {name: mask.flatten(1) for name, mask in found.items()}, pattern)
    masks = {f"{n}.weight": m.reshape(model.get_submodule(n).weight.shape) for n, m in found.items()}  # type: ignore[arg-type]
    return Selection([], {}, masks, dict.fromkeys(masks, part.pattern), skipped, orders=orders)


def _heads(model: nn.Module, part: HeadPart, choices: ImageChoices, example: Tensor, share: float) -> Selection:
    """Dimensions inside heads, where the smaller heads compute what the masked ones do."""
    found, skipped = _head_choices(model, part, choices, share)
    if found and not _heads_agree(model, found, example):
        names = ", ".join(attention.name for attention, _ in found[:2])
        raise CrepeError(f"the heads of {names}, ... cannot be made smaller in this module: choose another method")
    return Selection([], {}, skipped=skipped, heads=found)


def _head_choices(
    model: nn.Module, part: HeadPart, choices: ImageChoices, share: float
) -> tuple[list[tuple[Attention, HeadChoice]], list[Skipped]]:
    """Attentions that lose `share` of the dimensions of their heads, and the others with reasons."""
    found, skipped = [], []
    for index, attention in enumerate(find_attentions(model)):
        choice = None
        names = (attention.name, attention.query, attention.key, attention.value, attention.output)
        if not any(_matches(name, choices.recipe.exclude) for name in names):
            choice = part.select(heads_of(model, attention, index), share)
        if choice is None:
            skipped.append(_skipped(model, attention.query, "the method leaves this attention as it is"))
        elif choice.query_key.shape != choice.value_output.shape:
            skipped.append(_skipped(model, attention.query, "its module needs queries and values of one width"))
        else:
            found.append((attention, choice))
    return found, skipped


def _heads_agree(model: nn.Module, found: list[tuple[Attention, HeadChoice]], example: Tensor) -> bool:
    smaller, masked = copy.deepcopy(model), copy.deepcopy(model)
    for attention, choice in found:
        hold(masked, head_masks(model, attention, choice))
        cut_heads(smaller, attention, choice)
    try:
        return distance(answer(masked, example), answer(smaller, example)) <= TOLERANCE
    except (RuntimeError, ValueError):
        return False


def _reason(
    model: nn.Module, group: Group, part: FilterPart, include: Sequence[str], exclude: Sequence[str]
) -> str | None:
    if group.obstacle is not None:
        return group.obstacle
    if _named(group, exclude):
        return "excluded"
    if group.tied and not part.seeks_tied and not _named(group, include):
        return f"additions tie its channels to {len(group.makers) - 1} other layers"
    if group.units < 2:
        return "it has a single channel"
    if not part.suits(layer_of(model, group)):
        return "the method leaves layers of this kind as they are"
    return None


def _named(group: Group, patterns: Sequence[str]) -> bool:
    """Whether any of the layers whose channels go together is named: what happens to one happens to all."""
    return any(_matches(member.name, patterns) for member in (*group.makers, *group.followers))


def _skipped(model: nn.Module, name: str, reason: str) -> Skipped:
    weight: Tensor = model.get_submodule(name).weight  # type: ignore[assignment]
    return Skipped(f"{name}.weight", tuple(weight.shape), reason)


def _matches(name: str, patterns: Sequence[str]) -> bool:
    """A layer by its path or by that of its weight."""
    return any(fnmatch.fnmatch(name, p) or fnmatch.fnmatch(f"{name}.weight", p) for p in patterns)


def zeros_after(model: nn.Module, selection: Selection) -> dict[str, Tensor]:
    """Masks of what is zeroed in place, for a model whose channels have been cut: the weights that are not zero."""
    return {name: model.get_parameter(name).detach() != 0 for name in selection.masks}
