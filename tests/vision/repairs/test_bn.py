"""Running statistics become those of the images."""

from __future__ import annotations

import torch

from crepe.vision.repairs import REPAIRS
from image_families import Joined, plain


def test_a_small_batch_counts_by_its_size() -> None:
    model, pixels = plain(Joined), torch.randn(9, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    pixels[8] += 50
    REPAIRS.get("bn").after(model, [(pixels[:8], torch.zeros(0)), (pixels[8:], torch.zeros(0))])
    with torch.no_grad():
        inner = torch.cat([model.left(pixels), model.right(pixels)], 1)
    assert torch.allclose(model.bn.running_mean, inner.mean((0, 2, 3)), rtol=1e-4, atol=1e-4)


def test_statistics_are_the_averages_over_the_batches() -> None:
    model, pixels = plain(Joined), torch.randn(8, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    momentum, labels = model.bn.momentum, torch.zeros(0)
    REPAIRS.get("bn").after(model, [(pixels[:4], labels), (pixels[4:], labels)])
    with torch.no_grad():
        inner = torch.cat([model.left(pixels), model.right(pixels)], 1)
    means = torch.stack([inner[:4].mean((0, 2, 3)), inner[4:].mean((0, 2, 3))]).mean(0)
    assert torch.allclose(model.bn.running_mean, means, atol=1e-5)
    assert model.bn.momentum == momentum and not model.bn.training and not model.training
