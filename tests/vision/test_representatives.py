"""REPrune's selection as a whole, step by step against its parts."""

from __future__ import annotations

import torch

from crepe.vision.coverage import cover, covered
from crepe.vision.representatives import representatives
from crepe.vision.ward import kernel_clusters


def _weight(out: int, channels: int, kernel: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(out, channels, kernel, kernel, generator=torch.Generator().manual_seed(seed))


def test_one_layer_is_clustered_covered_and_ordered() -> None:
    weight = _weight(12, 6, 3)
    order = representatives([weight], 5)
    assert order.tolist() == cover(kernel_clusters(weight, 5), 5, weight.flatten(1).norm(dim=1)).tolist()
    assert len(order.unique()) == 5 and torch.equal(order, representatives([weight], 5, workers=2))


def test_tied_layers_are_covered_together() -> None:
    weights = [_weight(12, 6, 3), _weight(12, 40, 1, seed=1)]
    together = representatives(weights, 4)
    clusters = torch.cat([kernel_clusters(weight, 4) for weight in weights], dim=1)
    alone = representatives(weights[:1], 4)
    assert covered(clusters, together) > covered(clusters, alone)


def test_copies_of_filters_go_first() -> None:
    weight = _weight(8, 5, 3)
    weight[4:] = weight[:4]
    assert {int(i) % 4 for i in representatives([weight], 4)} == {0, 1, 2, 3}
