"""Training while pruning to a share of the multiply-accumulates, and the smaller network that it ends with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from crepe.errors import CrepeError, UsageError
from crepe.vision.budget import least_share
from crepe.vision.concurrent import PrunedLayer, kept_filters
from crepe.vision.cost import Shrinking
from crepe.vision.cut import cut, faithful
from crepe.vision.graph import Graph
from crepe.vision.group import Group
from crepe.vision.widths.bn_quantile import layer_sparsities


class MacsTarget:
    """The quantile of all batch-norm scales at which `macs` of the dense multiply-accumulates are left: what
    `ConcurrentPruning` asks for at every selection, as the scales move. A layer whose scales all lie at or below it is
    counted as one filter, but the selection leaves it as it is, so that more is left then. State only: the costs of the
    dense layers."""

    def __init__(self, model: nn.Module, layers: Sequence[PrunedLayer], example: Tensor, macs: float) -> None:
        """macs: share to keep.

        Raises:
            UsageError: no share, or one that pruning these layers cannot reach.
        """
        groups = _groups(Graph(model, example), [layer.convolution for layer in layers])
        self._cost, self._target = Shrinking(model, groups, example), macs
        self._widths = {group.name: group.width for group in groups}
        least = self._cost.after(dict.fromkeys(self._widths, 1)) / self._cost.dense
        if not least <= macs <= 1:
            raise UsageError(f"macs = {macs}: give a share from {least:.3f}, one filter in each of these layers, to 1")

    def __call__(self, scales: Mapping[str, Tensor]) -> float:
        """scales: convolution -> (out,)."""

        def after(share: float) -> float:
            found = layer_sparsities(scales, share)
            return self._cost.after({name: kept_filters(width, found[name]) for name, width in self._widths.items()})

        return least_share(after, self._target * self._cost.dense)


def cut_dead(model: nn.Module, alive: Mapping[str, Tensor], example: Tensor) -> None:
    """Remove the filters that `ConcurrentPruning.finish` has zeroed for good, in place.

    alive: convolution -> bool (out,).

    Raises:
        CrepeError: a layer cannot be cut so that the network computes the same.
    """
    graph = Graph(model, example)
    kept = {name: mask.nonzero()[:, 0] for name, mask in alive.items() if not bool(mask.all())}
    groups = _groups(graph, list(kept))
    sound = {group.name for group in faithful(model, groups, kept, example)}
    for name in kept:
        if name not in sound:
            raise CrepeError(f"the dead filters of {name!r} cannot be removed: leave the layer out of the pruned ones")
    cut(graph, groups, kept)


def _groups(graph: Graph, names: Sequence[str]) -> list[Group]:
    """Raises CrepeError naming the first layer that the graph cannot cut by itself."""
    known = {group.name: group for group in graph.groups}
    for name in names:
        group = known.get(name)
        if group is None or group.obstacle is not None or group.tied:
            reason = "additions tie its channels to other layers" if group is None or group.tied else group.obstacle
            raise CrepeError(f"filters of {name!r} cannot be removed: {reason}; leave it out of the pruned layers")
    return [known[name] for name in names]
