"""Ward clustering of convolution kernels, one tree for each input channel (REPrune, AAAI 2024, sections on
agglomerative clustering and the layer cut, eq. 4-5).

The merge cost is I(A, B) = |A||B| / (|A|+|B|) * ||m_A - m_B||^2 with the means m. SciPy's trees hold distances
sqrt(2 I), which rise with I, so a cut at a distance is the cut at the cost that belongs to it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import torch
from torch import Tensor

from crepe.vision.ward_line import line_clusters

Item = TypeVar("Item")
Result = TypeVar("Result")


def kernel_sets(weight: Tensor, normalise: bool = False) -> Tensor:
    """The kernels of each input channel as points: (out, in, kh, kw) -> (in, out, kh * kw) float64.

    normalise: divide each channel's kernels by the root of their summed squared distances from their mean, so that a
    channel of large weights does not set the cut of the whole layer (our option; the paper's kernels are as they are).
    """
    points = weight.detach().flatten(2).transpose(0, 1).cpu().double()
    if not normalise:
        return points.contiguous()
    spread = (points - points.mean(1, keepdim=True)).square().sum((1, 2), keepdim=True).sqrt()
    return torch.where(spread > 0, points / spread, points)


def trees(points: Tensor, workers: int = 1) -> list[Any]:
    """SciPy's linkage array, (out - 1, 4), of each channel. points: (in, out, kh * kw) float64.

    workers: threads; a part of the clustering runs outside of Python's lock.
    """
    from scipy.cluster.hierarchy import linkage

    return _map(lambda channel: linkage(channel, method="ward"), [part.numpy() for part in points], workers)


def merge_cost(tree: Any, merges: int) -> float:
    """d(c; K_j): the cost I of the last of `merges` merges of one channel's tree, 0.0 without merges."""
    return float(tree[merges - 1, 2]) ** 2 / 2 if merges else 0.0


def layer_cut(found: Sequence[Any], merges: int) -> float:
    """sqrt(2 h) with h = max_j d(merges; K_j), the distance at which every channel's tree is cut."""
    return max((float(tree[merges - 1, 2]) for tree in found), default=0.0) if merges else -1.0


def labels(found: Sequence[Any], cut: float, workers: int = 1) -> Tensor:
    """Cluster of every filter's kernel in every channel, all merges up to `cut` made: (out, in) int64, from 0."""
    from scipy.cluster.hierarchy import fcluster

    columns = _map(lambda tree: fcluster(tree, cut, criterion="distance"), found, workers)
    return torch.stack([torch.from_numpy(column).long() - 1 for column in columns], dim=1)


def kernel_clusters(weight: Tensor, keep: int, normalise: bool = False, workers: int = 1) -> Tensor:
    """Clusters of a layer that shall keep `keep` filters. weight: (out, in, kh, kw); returns (out, in) int64.

    out - keep merges are made in the channel whose last merge costs most, which so keeps `keep` clusters; the others
    merge on up to the same cost and keep fewer. Without merges every kernel is a cluster of its own.
    """
    out, channels = weight.shape[:2]
    if keep >= out or out < 2:
        return torch.arange(out)[:, None].expand(out, channels).contiguous()
    points = kernel_sets(weight, normalise)
    if points.shape[2] == 1:
        return line_clusters(points[:, :, 0], out - keep).T.contiguous()
    found = trees(points, workers)
    return labels(found, layer_cut(found, out - keep), workers)


def _map(function: Callable[[Item], Result], items: Sequence[Item], workers: int) -> list[Result]:
    if workers <= 1:
        return [function(item) for item in items]
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(function, items))
