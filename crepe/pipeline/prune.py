"""Selection, masking and repair of the matrices of one block: scores, sparsities, masks, weights written back."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from crepe.calibration.statistics import ChannelSums, fill_unseen_experts
from crepe.criteria import score
from crepe.masks import Mask, Matrix, Pattern, apply_mask, output_error
from crepe.models.views import View
from crepe.pipeline import selection
from crepe.recipe import Choices
from crepe.refine import Refinement

Statistics = dict[str, Tensor]


@dataclass(frozen=True)
class TensorReport:
    """What became of one weight matrix.

    error: share of the output energy that was lost, from the Gram matrix of the inputs where it was collected, else
    from their norms (see norm_error). steps: that share after selection and after each refinement of the matrix.
    columns: `in place`; `folded` where they were reordered in the model, with the rows that produce them; `permuted
    mask` where the pattern holds in another order than that in which they are stored.
    """

    shape: tuple[int, int]
    pattern: str
    zeros: int
    total: int
    error: float
    tokens: int
    steps: dict[str, float] = field(default_factory=dict)
    columns: str = "in place"

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def statistics_of(views: list[View], sums: Mapping[str, ChannelSums]) -> dict[str, Statistics]:
    """Statistics by view name; experts that saw no token take the mean of their layer, unseen matrices count ones."""
    by_parameter: dict[str, list[View]] = {}
    for view in views:
        by_parameter.setdefault(view.name.partition("[")[0], []).append(view)
    found = {}
    for group in by_parameter.values():
        filled = fill_unseen_experts([sums[view.name] for view in group])
        found.update({view.name: s.statistics() for view, s in zip(group, filled, strict=True)})
    return found


def scores(
    views: list[View], statistics: Mapping[str, Mapping[str, Tensor]], choices: Choices
) -> Iterator[tuple[View, Tensor]]:
    """The score of each view, (out, in) float32, one at a time."""
    for view in views:
        coefficients = choices.coefficients.of(view.kind)
        yield view, score(choices.criterion, view.matrix(), statistics[view.name], coefficients, view.name)


def matrices(
    views: list[View], statistics: dict[str, Statistics], sparsities: Mapping[str, float], choices: Choices
) -> Iterator[tuple[View, Matrix]]:
    """Every view with its mask selected, one at a time."""
    compare = _compare(choices)
    for view, importance in scores(views, statistics, choices):
        sparsity = sparsities[view.name]
        pattern = choices.pattern.option_for(sparsity, importance)
        kept = selection.by_score(pattern, importance, sparsity, compare)
        dense = view.matrix().float()
        found = statistics[view.name]
        yield view, Matrix(dense, dense * kept, kept, importance, found, pattern, sparsity, compare)


def prune_views(
    views: list[View],
    sums: Mapping[str, ChannelSums],
    sparsities: Mapping[str, float],
    choices: Choices,
    folded: Collection[str] = (),
) -> tuple[dict[str, TensorReport], dict[str, Mask]]:
    """Zero the least important weights of every view in place, and repair what is left.

    folded: names of views whose columns were reordered in the model, for the report.

    Returns:
        A report and the mask of each view, by name.
    """
    statistics = statistics_of(views, sums)
    reports: dict[str, TensorReport] = {}
    masks: dict[str, Mask] = {}
    for view in views:
        found = _pruned(view, statistics, sparsities, choices)
        order = None if found.order is None else found.order.cpu()
        masks[view.name] = Mask(found.kept.cpu(), found.pattern, order)
        zeros, total = write_back(view, found.weight, found.kept), found.kept.numel()
        columns = "permuted mask" if order is not None else "folded" if view.name in folded else "in place"
        reports[view.name] = TensorReport(
            view.shape, str(found.pattern), zeros, total, found.error, sums[view.name].tokens, found.steps, columns
        )
        # A Gram matrix is as large as a weight matrix: it goes as soon as it is used.
        statistics[view.name].clear()
        sums[view.name].gram = None
    return reports, masks


@dataclass(frozen=True)
class _Pruned:
    """What is written back: weight and kept are (out, in) as the model has them; the rest as in `TensorReport`."""

    weight: Tensor
    kept: Tensor
    pattern: Pattern
    error: float
    steps: dict[str, float] = field(default_factory=dict)
    order: Tensor | None = None


def _pruned(
    view: View, statistics: dict[str, Statistics], sparsities: Mapping[str, float], choices: Choices
) -> _Pruned:
    kept = None if _refinements(choices) else _selected_at_once(view, statistics, sparsities, choices)
    if kept is not None:
        dense = view.matrix().float()
        error = norm_error(dense, dense * kept, statistics[view.name]["norm"])
        return _Pruned(dense, kept, choices.pattern, error)
    _, selected = next(matrices([view], statistics, sparsities, choices))
    matrix, steps = refined(selected, choices)
    error = list(steps.values())[-1] if steps else norm_error(matrix.dense, matrix.weight, matrix.statistics["norm"])
    return _Pruned(*matrix.placed(), matrix.pattern, error, steps, matrix.order)


def _selected_at_once(
    view: View, statistics: dict[str, Statistics], sparsities: Mapping[str, float], choices: Choices
) -> Tensor | None:
    """The mask from a kernel that scores and selects together, None where there is none."""
    coefficients = choices.coefficients.of(view.kind)
    return selection.at_once(
        choices.criterion,
        choices.pattern,
        view.matrix(),
        statistics[view.name],
        coefficients,
        sparsities[view.name],
        _compare(choices),
        view.name,
    )


def _compare(choices: Choices) -> Any:
    """The group within which the weights of one matrix compete."""
    return "tensor" if choices.compare == "global" else choices.compare


def _refinements(choices: Choices) -> dict[str, Refinement]:
    return {name: found for name, found in choices.refinements.items() if isinstance(found, Refinement)}


def refined(matrix: Matrix, choices: Choices) -> tuple[Matrix, dict[str, float]]:
    """`matrix` after every refinement of matrices, and the output error after each step.

    A step that makes the output error larger is not taken: the matrix stays as it was before it.
    """
    wanted = _refinements(choices)
    if not wanted or bool(matrix.kept.all()):
        return matrix, {}
    error = output_error(matrix.dense, matrix.weight, matrix.gram)
    steps = {"select": error}
    for name, refinement in wanted.items():
        candidate = refinement.function(matrix)
        found = output_error(candidate.dense, candidate.weight, candidate.gram)
        if found <= error:
            matrix, error = candidate, found
        steps[name] = error
    return matrix, steps


def write_back(view: View, weight: Tensor, kept: Tensor) -> int:
    """Put the weights into the model, in its dtype; returns the zeros among them."""
    pruned = apply_mask(weight.to(view.parameter.dtype), kept)
    view.matrix().copy_(pruned)
    return pruned.numel() - int(torch.count_nonzero(pruned))


def norm_error(dense: Tensor, weight: Tensor, norm: Tensor) -> float:
    """sum_ij ((W - W')_ij ||X_j||)^2 / sum_ij (W_ij ||X_j||)^2: the relative output error of a matrix, as far as
    the norms of its inputs tell it (inputs taken as uncorrelated)."""
    whole = float((dense * norm).square_().sum())
    lost = float(((dense - weight) * norm).square_().sum())
    return lost / whole if whole else 0.0
