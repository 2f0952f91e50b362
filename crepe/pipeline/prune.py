"""Selection, masking and repair of the matrices of one block: scores, sparsities, masks, weights written back."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from crepe.calibration.statistics import ChannelSums, fill_unseen_experts
from crepe.criteria import score
from crepe.masks import Mask, Matrix, apply_mask, output_error
from crepe.models.views import View
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
    compare: Any = "tensor" if choices.compare == "global" else choices.compare
    for view, importance in scores(views, statistics, choices):
        sparsity = sparsities[view.name]
        pattern = choices.pattern.option_for(sparsity, importance)
        kept = pattern.select(importance, sparsity, compare)
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
    for view, selected in matrices(views, statistics, sparsities, choices):
        matrix, steps = refined(selected, choices)
        order = None if matrix.order is None else matrix.order.cpu()
        masks[view.name] = Mask(matrix.placed()[1].cpu(), matrix.pattern, order)
        error = list(steps.values())[-1] if steps else norm_error(matrix)
        zeros, total = write_back(view, matrix), matrix.dense.numel()
        columns = "permuted mask" if order is not None else "folded" if view.name in folded else "in place"
        tokens = sums[view.name].tokens
        reports[view.name] = TensorReport(view.shape, str(matrix.pattern), zeros, total, error, tokens, steps, columns)
        # A Gram matrix is as large as a weight matrix: it goes as soon as it is used.
        statistics[view.name].clear()
        sums[view.name].gram = None
    return reports, masks


def refined(matrix: Matrix, choices: Choices) -> tuple[Matrix, dict[str, float]]:
    """`matrix` after every refinement of matrices, and the output error after each step.

    A step that makes the output error larger is not taken: the matrix stays as it was before it.
    """
    wanted = {name: found for name, found in choices.refinements.items() if isinstance(found, Refinement)}
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


def write_back(view: View, matrix: Matrix) -> int:
    """Put the weights into the model, in its dtype; returns the zeros among them."""
    weight, kept = matrix.placed()
    pruned = apply_mask(weight.to(view.parameter.dtype), kept)
    view.matrix().copy_(pruned)
    return pruned.numel() - int(torch.count_nonzero(pruned))


def norm_error(matrix: Matrix) -> float:
    """sum_ij ((W - W')_ij ||X_j||)^2 / sum_ij (W_ij ||X_j||)^2: the relative output error of a matrix, as far as
    the norms of its inputs tell it (inputs taken as uncorrelated)."""
    norm = matrix.statistics["norm"]
    whole = float((matrix.dense * norm).square_().sum())
    lost = float(((matrix.dense - matrix.weight) * norm).square_().sum())
    return lost / whole if whole else 0.0
