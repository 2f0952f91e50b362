"""One weight matrix on its way from selection to writing back, and how much of its output is lost."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from crepe.errors import CrepeError
from crepe.masks.pattern import Compare, Pattern


@dataclass(frozen=True)
class Matrix:
    """One weight matrix between selection and writing back. Immutable: a refinement returns a changed copy.

    dense: (out, in) float32, the weights before pruning; weight: (out, in) float32, the weights now, zero where
    not kept; kept: (out, in) bool; score: (out, in) float32, of the criterion; statistics: by name, see
    `crepe.calibration.statistics`: norm and mean are (in,), gram is (in, in), tokens is how many inputs they hold.
    sparsity: of this matrix; compare: the group within which weights compete where the pattern is unstructured.
    order: (in,) int64 where the columns of everything above stand in another order than in the model: column j here
    is the model's column order[j]. Groups of N:M are groups of neighbours in this order.
    """

    dense: Tensor
    weight: Tensor
    kept: Tensor
    score: Tensor
    statistics: Mapping[str, Tensor]
    pattern: Pattern
    sparsity: float
    compare: Compare = "tensor"
    order: Tensor | None = None

    @property
    def gram(self) -> Tensor:
        """Sum over tokens of x x^T, (in, in) float32."""
        return self.statistics["gram"]

    def with_mask(self, kept: Tensor, weight: Tensor | None = None) -> Matrix:
        """Another mask, with the weights given or the dense ones where it keeps them."""
        return replace(self, kept=kept, weight=(self.dense if weight is None else weight) * kept)

    def reordered(self, order: Tensor) -> Matrix:
        """The same matrix with its columns in `order` (in,), counted from where they stand now."""
        columns = {name: getattr(self, name)[:, order] for name in ("dense", "weight", "kept", "score")}
        statistics = {name: _reorder_statistic(value, order) for name, value in self.statistics.items()}
        before = torch.arange(len(order), device=order.device) if self.order is None else self.order
        return replace(self, **columns, statistics=statistics, order=before[order])

    def in_model_order(self) -> Matrix:
        """The same matrix with its columns where the model has them."""
        return self if self.order is None else replace(self.reordered(self.order.argsort()), order=None)

    def placed(self) -> tuple[Tensor, Tensor]:
        """weight and kept alone, with their columns where the model has them."""
        if self.order is None:
            return self.weight, self.kept
        back = self.order.argsort()
        return self.weight[:, back], self.kept[:, back]


def _reorder_statistic(value: Tensor, order: Tensor) -> Tensor:
    if value.dim() == 2:
        return value[order][:, order]
    return value[order] if value.dim() == 1 else value


def output_error(dense: Tensor, weight: Tensor, gram: Tensor) -> float:
    """tr((W - W') G (W - W')^T) / tr(W G W^T): the share of a matrix's output energy that is lost.

    dense, weight: (out, in) float32; gram: (in, in), the sum of x x^T over the calibration inputs.

    Raises:
        CrepeError: weights or inputs hold NaN or infinite values.
    """
    lost = dense - weight
    whole = float(((dense @ gram) * dense).sum(dtype=torch.float64))
    if not math.isfinite(whole):
        raise CrepeError("weights or calibration activations hold NaN or infinite values: try --dtype float32")
    return float(((lost @ gram) * lost).sum(dtype=torch.float64)) / whole if whole > 0 else 0.0
