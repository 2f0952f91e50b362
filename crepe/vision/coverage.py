"""Greedy maximum coverage: filters that together touch the most kernel clusters (REPrune, AAAI 2024)."""

from __future__ import annotations

import torch
from torch import Tensor


def cover(clusters: Tensor, keep: int, priority: Tensor | None = None) -> Tensor:
    """Filters in the order in which they are chosen: (keep,) int64.

    Filter i covers cluster clusters[i, j] of every channel j. The next filter is always the one that covers the most
    clusters not yet covered; the first `k` of the order cover at least (1 - 1/e) of what any k filters can. Ties, and
    with them everything after full coverage, go to the higher `priority`, then to the lower index, where the paper
    draws one at random: its rule is a random priority.

    clusters: (out, in) int64, from 0; priority: (out,).
    """
    out, channels = clusters.shape
    order = torch.arange(out) if priority is None else torch.argsort(priority, descending=True, stable=True)
    ranked = clusters[order]
    gain = torch.full((out,), channels)
    uncovered = torch.ones(channels, int(clusters.max()) + 1 if clusters.numel() else 1, dtype=torch.bool)
    chosen: list[int] = []
    for _ in range(min(keep, out)):
        # The first of equal maxima, which stand in the order of priority.
        best = int(gain.argmax())
        chosen.append(best)
        new = uncovered.gather(1, ranked[best][:, None])[:, 0].nonzero()[:, 0]
        uncovered[new, ranked[best, new]] = False
        gain -= (ranked[:, new] == ranked[best, new]).sum(1)
        gain[best] = -1
    return order[chosen]


def covered(clusters: Tensor, filters: Tensor) -> int:
    """How many clusters, over all channels, the `filters` cover. clusters: (out, in); filters: (k,)."""
    return sum(len(column.unique()) for column in clusters[filters].T)
