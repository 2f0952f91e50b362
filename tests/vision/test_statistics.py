"""Statistics against naive sums."""

from __future__ import annotations

import torch

from crepe.vision.graph import Graph
from crepe.vision.statistics import taylor
from image_families import Joined, plain

CPU = torch.device("cpu")
PIXELS = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2, 3, 4, 0])
BATCHES = [(PIXELS[:4], LABELS[:4]), (PIXELS[4:], LABELS[4:])]


def test_taylor_is_the_squared_product_of_gradient_and_weight() -> None:
    model = plain(Joined).double().float()
    groups = [group for group in Graph(model, PIXELS).groups if group.obstacle is None]
    found = taylor(model, groups, BATCHES, CPU)
    expected = torch.zeros(8)
    for pixels, labels in BATCHES:
        loss = torch.nn.functional.cross_entropy(model(pixels), labels)
        (gradient,) = torch.autograd.grad(loss, model.left.weight)
        expected += (gradient * model.left.weight).detach().sum((1, 2, 3)).square()
    assert torch.allclose(found["left"], expected, rtol=1e-4)
    assert all(parameter.grad is None for parameter in model.parameters())
