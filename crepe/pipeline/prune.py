"""Selection and masking of one block: scores, sparsities, masks, weights written back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from crepe.calibration.statistics import ChannelSums, fill_unseen_experts
from crepe.criteria import score
from crepe.masks import Mask, apply_mask
from crepe.models.views import View
from crepe.recipe import Choices


@dataclass(frozen=True)
class TensorReport:
    """What became of one weight matrix. error: share of the output energy that was removed (see output_error)."""

    shape: tuple[int, int]
    pattern: str
    zeros: int
    total: int
    error: float
    tokens: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def statistics_of(views: list[View], sums: Mapping[str, ChannelSums]) -> dict[str, dict[str, Tensor]]:
    """Statistics by view name; experts that saw no token take the mean of their layer, unseen matrices count ones."""
    by_parameter: dict[str, list[View]] = {}
    for view in views:
        by_parameter.setdefault(view.name.partition("[")[0], []).append(view)
    found = {}
    for group in by_parameter.values():
        filled = fill_unseen_experts([sums[view.name] for view in group])
        found.update({view.name: {"norm": s.norm} for view, s in zip(group, filled, strict=True)})
    return found


def scores(
    views: list[View], statistics: Mapping[str, Mapping[str, Tensor]], choices: Choices
) -> Iterator[tuple[View, Tensor]]:
    """The score of each view, (out, in) float32, one at a time."""
    for view in views:
        coefficients = choices.coefficients.of(view.kind)
        yield view, score(choices.criterion, view.matrix(), statistics[view.name], coefficients, view.name)


def prune_views(
    views: list[View],
    sums: Mapping[str, ChannelSums],
    sparsities: Mapping[str, float],
    choices: Choices,
) -> tuple[dict[str, TensorReport], dict[str, Mask]]:
    """Zero the least important weights of every view in place.

    Returns:
        A report and the mask of each view, by name.
    """
    statistics = statistics_of(views, sums)
    compare = "tensor" if choices.compare == "global" else choices.compare
    reports: dict[str, TensorReport] = {}
    masks: dict[str, Mask] = {}
    for view, importance in scores(views, statistics, choices):
        kept = choices.pattern.select(importance, sparsities[view.name], compare)
        weight = view.matrix()
        for refine in choices.refinements:
            weight, kept = refine(weight, kept, statistics[view.name], choices.pattern)
        reports[view.name] = _write_back(view, weight, kept, statistics[view.name]["norm"], choices, sums)
        masks[view.name] = Mask(kept.cpu(), choices.pattern)
    return reports, masks


def _write_back(
    view: View, weight: Tensor, kept: Tensor, norm: Tensor, choices: Choices, sums: Mapping[str, ChannelSums]
) -> TensorReport:
    pruned = apply_mask(weight, kept)
    error = output_error(view.matrix(), pruned, norm)
    view.matrix().copy_(pruned)
    zeros = pruned.numel() - int(torch.count_nonzero(pruned))
    return TensorReport(view.shape, str(choices.pattern), zeros, pruned.numel(), error, sums[view.name].tokens)


def output_error(dense: Tensor, pruned: Tensor, norm: Tensor) -> float:
    """sum_ij ((W - W')_ij ||X_j||)^2 / sum_ij (W_ij ||X_j||)^2: the relative output error of a matrix, as far as
    the norms of its inputs tell it (inputs taken as uncorrelated). weights: (out, in); norm: (in,)."""
    outputs = dense.float() * norm
    whole = float(outputs.square().sum())
    lost = float(outputs.sub_(pruned.float() * norm).square_().sum())
    return lost / whole if whole else 0.0
