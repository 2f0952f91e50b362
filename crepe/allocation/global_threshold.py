"""One threshold for all tensors: the weights with the lowest scores of the whole model go.

The exact k-th largest score is found without holding the scores: two histograms over the bits of the non-negative
float32 values, the upper half first, then the lower half of the bucket that holds the k-th.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

Scores = Callable[[], Iterator[tuple[str, Tensor]]]

_HALF = 1 << 16


def global_sparsities(scores: Scores, sparsity: float) -> dict[str, float]:
    """The sparsity of each tensor under one global threshold; ties go to the tensors that come first.

    scores: gives (name, non-negative float32 scores of any shape), the same each of the three times it is called.
    """
    from crepe.masks.select import kept_count

    high, total = _histogram(scores, lambda bits: bits >> 16)
    keep = kept_count(total, sparsity)
    bucket, above = _bucket_of(high, keep)
    low, _ = _histogram(scores, lambda bits: (bits & (_HALF - 1))[(bits >> 16) == bucket])
    rest, above_in_bucket = _bucket_of(low, keep - above)
    threshold = (bucket << 16) | rest
    return _shares(scores, threshold, ties=keep - above - above_in_bucket)


def _bits(score: Tensor) -> Tensor:
    """Non-negative float32 order like their bit patterns."""
    return score.reshape(-1).contiguous().view(torch.int32)


def _histogram(scores: Scores, key: Callable[[Tensor], Tensor]) -> tuple[Tensor, int]:
    counts = torch.zeros(_HALF, dtype=torch.int64)
    total = 0
    for _, score in scores():
        counts += torch.bincount(key(_bits(score)), minlength=_HALF).cpu()
        total += score.numel()
    return counts, total


def _bucket_of(counts: Tensor, keep: int) -> tuple[int, int]:
    """The bucket of the keep-th largest entry, and how many entries lie above that bucket."""
    from_top = counts.flip(0).cumsum(0)
    position = min(int(torch.searchsorted(from_top, keep)), len(counts) - 1)
    above = int(from_top[position - 1]) if position else 0
    return len(counts) - 1 - position, above


def _shares(scores: Scores, threshold: int, ties: int) -> dict[str, float]:
    shares = {}
    for name, score in scores():
        bits = _bits(score)
        tied = min(ties, int((bits == threshold).sum()))
        ties -= tied
        shares[name] = 1 - (int((bits > threshold).sum()) + tied) / score.numel()
    return shares
