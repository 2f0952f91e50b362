"""Ward clustering of single numbers, for all channels of a layer in step: the 1x1 convolutions.

On a line the cheapest pair of clusters always stands next to each other: with B between A and C, I(A, C) is at least
the smaller of I(A, B) and I(B, C). So clusters are runs of the sorted values, a merge takes one boundary away, and all
that has to be known of a channel's tree is what each boundary costs.
"""

from __future__ import annotations

import torch
from torch import Tensor


def line_clusters(values: Tensor, merges: int) -> Tensor:
    """Clusters of every channel at the cost of the dearest `merges`-th merge of all channels.

    values: (channels, points) float64; merges: 1 to points - 1. The partitions that cutting the trees of
    `crepe.vision.ward` gives, where no two merges cost the same. Returns (channels, points) int64, from 0.
    """
    ordered, order = values.sort(dim=1, stable=True)
    costs = boundary_costs(ordered)
    # Merges of a channel never get cheaper, so that of number `merges` is the boundary of that rank.
    cut = costs.kthvalue(merges, dim=1).values.max()
    runs = torch.nn.functional.pad((costs > cut).long().cumsum(1), (1, 0))
    return torch.empty_like(order).scatter_(1, order, runs)


def boundary_costs(ordered: Tensor) -> Tensor:
    """The cost I of the merge that takes away the boundary behind each point but the last.

    ordered: (channels, points) float64, rising. Returns (channels, points - 1).
    """
    line = _Line(ordered)
    found = torch.zeros_like(ordered)
    dearest = torch.zeros_like(ordered[:, 0])
    for _ in range(ordered.shape[1] - 1):
        cost, boundary = line.merge()
        # Rounding can make a merge seem cheaper than the one before.
        dearest = torch.maximum(dearest, cost)
        found.scatter_(1, boundary[:, None], dearest[:, None])
    return found[:, :-1]


class _Line:
    """The clusters of every channel as a linked list; a cluster is named by its first point.

    after, before: the neighbours of each cluster, `points` behind the last and -1 before the first; size, mean: of each
    cluster; cost: of merging it with the one behind it, infinite for the last and for what is no cluster any more.
    """

    def __init__(self, ordered: Tensor) -> None:
        channels, self.points = ordered.shape
        self.rows = torch.arange(channels)
        self.after = torch.arange(1, self.points + 1).repeat(channels, 1)
        self.before = torch.arange(-1, self.points - 1).repeat(channels, 1)
        self.size, self.mean = torch.ones_like(ordered), ordered.clone()
        self.cost = torch.full_like(ordered, torch.inf)
        self.cost[:, :-1] = ordered.diff(dim=1).square() / 2

    def merge(self) -> tuple[Tensor, Tensor]:
        """Merge the cheapest pair of every channel. Returns its cost and the last point of its first cluster."""
        rows = self.rows
        cost, first = self.cost.min(dim=1)
        second = self.after[rows, first]
        size = self.size[rows, first] + self.size[rows, second]
        step = (self.mean[rows, second] - self.mean[rows, first]) * self.size[rows, second] / size
        self.mean[rows, first] += step
        self.size[rows, first] = size
        behind = self.after[rows, second]
        self.after[rows, first] = behind
        inner = behind < self.points
        self.before[rows[inner], behind[inner]] = first[inner]
        self.cost[rows, second] = torch.inf
        self._price(rows, first)
        ahead = self.before[rows, first]
        self._price(rows[ahead >= 0], ahead[ahead >= 0])
        return cost, second - 1

    def _price(self, rows: Tensor, cluster: Tensor) -> None:
        behind = self.after[rows, cluster]
        last, behind = behind == self.points, behind.clamp(max=self.points - 1)
        a, b = self.size[rows, cluster], self.size[rows, behind]
        gap = self.mean[rows, behind] - self.mean[rows, cluster]
        self.cost[rows, cluster] = (a * b / (a + b) * gap.square()).masked_fill(last, torch.inf)
