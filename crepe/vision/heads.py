"""Dimensions of attention heads: which to keep, and the smaller matrices (ToaSt, ICML 2026: coupled head-wise pruning).

A dimension of the queries goes together with the same one of the keys, and a dimension of the values with the column
of the output projection that reads it. Every head keeps the same number, so what is left is an ordinary attention with
smaller heads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class AttentionWeights:
    """One multi-head attention: o = sum_h output_h^T softmax(scale q_h k_h^T) v_h + output_bias.

    query, key: (heads, d, in); value: (heads, e, in); output: (heads, e, out), the output projection transposed.
    query_bias, key_bias: (heads, d); value_bias: (heads, e); output_bias: (out,); None where there is none.
    scale: the factor of the logits, which pruning must not change: it stays that of the dense heads.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    output: Tensor
    scale: float
    query_bias: Tensor | None = None
    key_bias: Tensor | None = None
    value_bias: Tensor | None = None
    output_bias: Tensor | None = None


def median_distance(rows: Tensor) -> Tensor:
    """L2 distance of each row from the column-wise median of its head's rows: (heads, d, n) -> (heads, d).

    A row near the median can be replaced by the others. Of an even number of values the median is the lower middle one,
    as in the paper's code.
    """
    rows = rows.detach().float()
    distance: Tensor = torch.linalg.vector_norm(rows - rows.median(dim=1, keepdim=True).values, dim=2)
    return distance


def _norm(power: int) -> Callable[[Tensor], Tensor]:
    return lambda rows: torch.linalg.vector_norm(rows.detach().float(), power, dim=2)


# By name: (heads, d, n) -> (heads, d). The median is the paper's, the norms are what it is compared with.
SCORES: Mapping[str, Callable[[Tensor], Tensor]] = MappingProxyType(
    {"median": median_distance, "l1": _norm(1), "l2": _norm(2)}
)


def coupled_score(first: Tensor, second: Tensor, score: str = "median") -> Tensor:
    """The score of each dimension from both of its matrices: [Q | K] or [V | O^T], each (heads, d, n)."""
    return SCORES[score](torch.cat([first, second], dim=2))


def kept_dimensions(dimensions: int, sparsity: float, multiple: int = 1) -> int:
    """floor(d (1 - sparsity)), raised to a multiple of `multiple`; from 1 to `dimensions`.

    The paper keeps 6 of 64 at 0.9; tensor cores and fused attention want a multiple of 8.
    """
    kept = max(int(dimensions * (1 - sparsity) + 1e-9), 1)
    return min(-(-kept // multiple) * multiple, dimensions)


def top_dimensions(score: Tensor, keep: int) -> Tensor:
    """(heads, d) -> the `keep` best of each head, (heads, keep) int64, rising; ties go to the lower index."""
    return score.argsort(dim=1, descending=True, stable=True)[:, :keep].sort(dim=1).values


def keep_query_key(weights: AttentionWeights, kept: Tensor) -> AttentionWeights:
    """The attention with the dimensions `kept` (heads, k) of queries and keys.

    The biases of removed dimensions go too. Against the masked attention, whose biases stay, nothing is lost by that:
    there they add the same constant to all logits of a query.
    """
    return replace(
        weights,
        query=_rows(weights.query, kept),
        key=_rows(weights.key, kept),
        query_bias=_entries(weights.query_bias, kept),
        key_bias=_entries(weights.key_bias, kept),
    )


def keep_value_output(weights: AttentionWeights, kept: Tensor) -> AttentionWeights:
    """The attention with the dimensions `kept` (heads, k) of the values and of what the output projection reads."""
    return replace(
        weights,
        value=_rows(weights.value, kept),
        output=_rows(weights.output, kept),
        value_bias=_entries(weights.value_bias, kept),
    )


def _rows(matrix: Tensor, kept: Tensor) -> Tensor:
    return matrix.gather(1, kept[:, :, None].expand(-1, -1, matrix.shape[2]))


def _entries(bias: Tensor | None, kept: Tensor) -> Tensor | None:
    return None if bias is None else bias.gather(1, kept)
