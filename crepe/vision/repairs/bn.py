"""Batch-norm statistics measured again: the layers behind a cut see other means and variances than they were told."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from crepe.vision.repairs.base import REPAIRS, Repair


def measure_again(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Running mean and variance become the averages over `batches`, by their sizes (Li et al. 2020, EagleEye, section
    3.3)."""
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d) and m.track_running_stats]
    if not norms:
        return
    device = next(model.parameters()).device
    momenta = [norm.momentum for norm in norms]
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.train()
    seen = 0
    with torch.no_grad():
        for pixels, _ in batches:
            seen += len(pixels)
            for norm in norms:
                norm.momentum = len(pixels) / seen
            model(pixels.to(device))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()


REPAIRS.add("bn", Repair(after=measure_again))
