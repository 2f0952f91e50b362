"""The CRePE score of some rows of every matrix, with everything that no trial changes prepared once.

Row sums, column sums and neighbourhoods are those of the whole matrix; only the rows on which a trial works are a
seeded sample, since thousands of weights per matrix rank two sets of coefficients as all of them do (measured in
docs/results/pho.md). Matrices of one shape are stacked and scored in one go.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from crepe.criteria.coefficients import Coefficients
from crepe.criteria.neighbourhood import term_from_box
from crepe.criteria.ria import shares
from crepe.criteria.sums import box_mean
from crepe.models.views import View

# Weights per matrix on which a trial works, and the fewest rows.
ENTRIES = 32768
_ROWS = 16


@dataclass
class Stack:
    """Sampled rows of matrices of one shape and kind.

    names: of the L matrices; rows: (L, r) which rows; weight: (L, r, in) float32, the sampled weights with their sign;
    row, column, mean, norm: (L, r, 1), (L, 1, in), (L, 1, 1) and (L, 1, in), as the score needs them.
    """

    names: list[str]
    kind: str
    rows: Tensor
    weight: Tensor
    row: Tensor
    column: Tensor
    mean: Tensor
    norm: Tensor
    boxes: dict[int, Tensor] = field(default_factory=dict)

    def score(self, coefficients: Coefficients) -> Tensor:
        """The CRePE score of the sampled rows, (L, r, in); equal to `crepe.criteria.crepe.crepe_score` there."""
        size = self.weight.abs()
        result = (self.row * coefficients.row + self.column * coefficients.column).mul_(size)
        if coefficients.neighbourhood:
            result.add_(self._neighbourhood(size, coefficients), alpha=coefficients.neighbourhood)
        return result.mul_(self.norm.pow(coefficients.activation))

    def _neighbourhood(self, size: Tensor, coefficients: Coefficients) -> Tensor:
        return term_from_box(size, self.boxes[coefficients.kernel], self.mean, coefficients.form)


class Sample:
    """Stacks of sampled rows of all `views`."""

    def __init__(
        self,
        views: Sequence[View],
        norms: Mapping[str, Tensor],
        kernels: Sequence[int],
        seed: int = 0,
        entries: int = ENTRIES,
    ) -> None:
        groups: dict[tuple[tuple[int, int], str], list[View]] = {}
        for view in views:
            groups.setdefault((view.shape, view.kind), []).append(view)
        generator = torch.Generator().manual_seed(seed)
        self.stacks = [_stack(group, norms, kernels, generator, entries) for group in groups.values()]

    def masks(self, coefficients: Coefficients, choices: Any) -> Iterator[tuple[Stack, Tensor, Tensor]]:
        """Each stack with its scores and its mask, (L, r, in), True = kept."""
        for stack in self.stacks:
            score = stack.score(coefficients.of(stack.kind))
            yield stack, score, select(score, choices)


def select(score: Tensor, choices: Any) -> Tensor:
    """The mask of stacked scores (L, r, in), each matrix for itself: its sampled rows stand for all of them."""
    if choices.compare == "tensor" and choices.pattern.fixed_sparsity is None:
        flat = score.reshape(len(score), -1)
    else:
        flat = score.reshape(-1, score.shape[-1])
    kept: Tensor = choices.pattern.select(flat, choices.sparsity, "row")
    return kept.reshape(score.shape)


def _stack(
    views: Sequence[View], norms: Mapping[str, Tensor], kernels: Sequence[int], generator: torch.Generator, entries: int
) -> Stack:
    out, inputs = views[0].shape
    count = min(out, max(_ROWS, entries // inputs))
    parts: dict[str, list[Tensor]] = {key: [] for key in ("rows", "weight", "row", "column", "mean", "norm")}
    boxes: dict[int, list[Tensor]] = {kernel: [] for kernel in kernels}
    for view in views:
        weight = view.matrix().float()
        rows = torch.randperm(out, generator=generator)[:count].sort().values.to(weight.device)
        size = weight.abs()
        common = 2 * out * inputs / (out + inputs)
        parts["rows"].append(rows)
        parts["weight"].append(weight[rows])
        row, column = shares(weight)
        parts["row"].append(common * row[rows])
        parts["column"].append(common * column)
        parts["mean"].append(size.mean().view(1, 1))
        parts["norm"].append(norms[view.name][None])
        for kernel in kernels:
            boxes[kernel].append(box_mean(size, kernel)[rows])
    stacked = {key: torch.stack(found) for key, found in parts.items()}
    names = [view.name for view in views]
    return Stack(names, views[0].kind, **stacked, boxes={kernel: torch.stack(found) for kernel, found in boxes.items()})
