"""Exact selection of the weights to keep.

Counts are exact and ties are stable: among equal scores the lower index is kept. A threshold with `<=` would
prune every tie at the threshold, so the k-th value is used only to split above, at and below.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Up to this group width, counting the better neighbours of every weight is faster than a stable sort.
_RANK_BY_COUNTING = 16


def kept_count(total: int, sparsity: float) -> int:
    """Weights kept of `total`: `total` minus `total * sparsity` rounded half up."""
    return total - int(total * sparsity + 0.5)


def select_largest(score: Tensor, keep: int) -> Tensor:
    """Keep exactly `keep` entries in every row of `score`.

    Args:
        score: (groups, members), any float dtype, no NaN.
        keep: entries to keep per row, 0..members.

    Returns:
        Boolean mask of the same shape, True = kept.
    """
    members = score.shape[-1]
    if keep <= 0:
        return torch.zeros_like(score, dtype=torch.bool)
    if keep >= members:
        return torch.ones_like(score, dtype=torch.bool)
    threshold = _kth_largest(score, keep)
    above = score > threshold
    tied = score == threshold
    missing = keep - above.sum(-1, keepdim=True)
    if bool((tied.sum(-1, keepdim=True) == missing).all()):
        return above | tied
    return above | (tied & (tied.cumsum(-1) <= missing))


def _kth_largest(score: Tensor, k: int) -> Tensor:
    """The k-th largest entry of every row, (groups, 1). One long row on the CPU goes to numpy, which is 3 x faster."""
    members = score.shape[-1]
    if score.device.type == "cpu" and len(score) == 1:
        import numpy

        row = score[0].numpy()
        return torch.tensor([[numpy.partition(row, members - k)[members - k]]], dtype=score.dtype)
    return torch.kthvalue(score, members - k + 1, dim=-1, keepdim=True).values


def select_n_of_m(score: Tensor, n: int, m: int) -> Tensor:
    """Keep exactly the `n` largest of every `m` neighbours along the last axis.

    Args:
        score: (out, in) with `in` a multiple of `m`.

    Returns:
        Boolean mask of the same shape, True = kept.
    """
    groups = score.reshape(*score.shape[:-1], -1, m)
    rank = _rank_by_counting(groups) if m <= _RANK_BY_COUNTING else _rank_by_sorting(groups)
    return (rank < n).reshape(score.shape)


def _rank_by_counting(groups: Tensor) -> Tensor:
    """(..., m) -> for each entry, how many of its group come before it (larger, or equal and earlier)."""
    m = groups.shape[-1]
    rank = torch.zeros(groups.shape, dtype=torch.uint8, device=groups.device)
    for i in range(m):
        for j in range(i + 1, m):
            second_wins = groups[..., j] > groups[..., i]
            rank[..., i] += second_wins
            rank[..., j] += ~second_wins
    return rank


def _rank_by_sorting(groups: Tensor) -> Tensor:
    order = groups.argsort(dim=-1, descending=True, stable=True)
    return order.argsort(dim=-1)


def apply_mask(weight: Tensor, mask: Tensor) -> Tensor:
    """`weight` with the masked entries at +0.0.

    Multiplying by the mask would leave -0.0, which sparse kernels have taken for a value; the addition turns a
    kept -0.0 positive as well.
    """
    return torch.where(mask, weight, torch.zeros((), dtype=weight.dtype, device=weight.device)) + 0.0
