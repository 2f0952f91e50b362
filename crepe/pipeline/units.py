"""Removing the units of one block: importance, selection, masks, repair of the consumers, and what to cut out later."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from crepe.calibration.statistics import ChannelSums
from crepe.masks import Mask, Matrix, Structured, select_largest
from crepe.models.coupling import row_vectors
from crepe.models.units import UnitGroup
from crepe.models.views import View
from crepe.pipeline.prune import Statistics, TensorReport, norm_error, refined, scores, statistics_of, write_back
from crepe.recipe import Choices


@dataclass
class Removed:
    """What became of a block. reports, masks: by view; kept: bool (units,) by consumer."""

    reports: dict[str, TensorReport] = field(default_factory=dict)
    masks: dict[str, Mask] = field(default_factory=dict)
    kept: dict[str, Tensor] = field(default_factory=dict)


def remove_units(
    groups: Sequence[UnitGroup], sums: Mapping[str, ChannelSums], keep: Mapping[str, int], choices: Choices
) -> Removed:
    """Zero the least important units of every group in place and repair its consumer. keep: units kept, by consumer."""
    statistics = statistics_of([view for group in groups for view in group.views], sums)
    done = Removed()
    for group in groups:
        found = {view.name: score for view, score in scores(group.views, statistics, choices)}
        kept = select_largest(unit_importance(group, found)[None], keep[group.name])[0].cpu()
        done.kept[group.name] = kept
        for view in group.views:
            matrix = _selected(group, view, kept, found[view.name], statistics[view.name], choices)
            steps: dict[str, float] = {}
            if view.name == group.name:
                matrix, steps = _repaired(matrix, view, sums[view.name].tokens, choices)
            error = (
                list(steps.values())[-1]
                if steps
                else norm_error(matrix.dense, matrix.weight, matrix.statistics["norm"])
            )
            done.masks[view.name] = Mask(matrix.kept.cpu(), matrix.pattern)
            zeros, total = write_back(view, *matrix.placed()), matrix.dense.numel()
            tokens = sums[view.name].tokens
            done.reports[view.name] = TensorReport(view.shape, str(matrix.pattern), zeros, total, error, tokens, steps)
            statistics[view.name].clear()
            sums[view.name].gram = None
        clear_vectors(group, kept)
    return done


def unit_importance(group: UnitGroup, found: Mapping[str, Tensor]) -> Tensor:
    """The sum of the scores of everything in a unit that is a matrix, (units,) float64.

    found: (out, in) float32 scores by view: of the consumer the unit's columns count, of producers its rows.
    """
    total = torch.zeros(group.units, dtype=torch.float64)
    for part in group.matrices:
        assert part.view is not None
        lines = found[part.view.name].sum(0 if part is group.consumer else 1, dtype=torch.float64).cpu()
        total += lines[part.index].sum(1)
    return total


def clear_vectors(group: UnitGroup, kept: Tensor) -> None:
    """Zero the biases and other entries of removed units. kept: bool (units,)."""
    for part in group.vectors:
        part.clear(~kept)


def _selected(
    group: UnitGroup, view: View, kept: Tensor, score: Tensor, statistics: Statistics, choices: Choices
) -> Matrix:
    dense = view.matrix().float()
    mask = torch.ones(view.shape, dtype=torch.bool)
    for part in group.matrices:
        if part.view is not None and part.view.name == view.name:
            mask.index_fill_(1 if part is group.consumer else 0, part.index[~kept].reshape(-1), False)
    mask = mask.to(dense.device)
    pattern = Structured(choices.pattern.unit, group.width if view.name == group.name else 1)
    sparsity = 1 - int(kept.sum()) / len(kept)
    return Matrix(dense, dense * mask, mask, score, statistics, pattern, sparsity)


def _repaired(matrix: Matrix, view: View, tokens: int, choices: Choices) -> tuple[Matrix, dict[str, float]]:
    """The consumer after its refinements; what it loses on average goes into its bias where it has one.

    With a bias b' = b + (W - W') m for the mean input m, only what varies is lost: the layer error is that of the
    centred Gram matrix, G - tokens m m^T, so that is what the weights are fitted to (FLAP, arXiv 2312.11983, eq. 6
    folds the mean in the same way).
    """
    bias = next(iter(row_vectors(view).values()), None)
    if bias is None or not tokens:
        return refined(matrix, choices)
    mean = matrix.statistics["mean"]
    if "gram" in matrix.statistics:
        centred = matrix.gram - matrix.statistics["tokens"].to(mean.device) * torch.outer(mean, mean)
        matrix = replace(matrix, statistics={**matrix.statistics, "gram": centred})
    matrix, steps = refined(matrix, choices)
    bias.copy_(bias.float() + (matrix.dense - matrix.weight) @ mean)
    return matrix, steps


# For the checkpoint


def cuts_of(groups: Sequence[UnitGroup], kept: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What stays of each parameter: `NAME@DIM` -> positions along that dimension, (n,) or (experts, n) int32."""
    stays: dict[str, Tensor] = {}
    for group in groups:
        for part in group.parts:
            parameter = getattr(part.owner, part.attribute)
            key = f"{part.name}@{part.dim}"
            lead = parameter.shape[:1] if part.expert is not None else ()
            mask = stays.setdefault(key, torch.ones(*lead, parameter.shape[part.dim], dtype=torch.bool))
            row = mask if part.expert is None else mask[part.expert]
            row[part.index[~kept[group.name]].reshape(-1)] = False
    return {key: _positions(mask) for key, mask in stays.items()}


def _positions(mask: Tensor) -> Tensor:
    return mask.nonzero()[:, -1].reshape(*mask.shape[:-1], -1).int()


def records_of(
    groups: Sequence[UnitGroup], keep: Mapping[str, int], attributes: Mapping[str, dict[str, int] | None] | None = None
) -> list[dict[str, Any]]:
    """One line for each consumer parameter, for the journal and crepe.json. The experts of one have equal counts.

    attributes: by consumer, what `following_attributes` found.
    """
    lines = {}
    for group in groups:
        numbers = (attributes or {}).get(group.name)
        lines[group.consumer.name] = {
            "consumer": group.consumer.name,
            "units": group.units,
            "kept": keep[group.name],
            "heads": group.heads,
            "width": group.width,
            "attributes": None if numbers is None else {n: each * keep[group.name] for n, each in numbers.items()},
        }
    return list(lines.values())
