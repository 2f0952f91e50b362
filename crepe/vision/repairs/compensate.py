"""Least squares before a cut: what a removed channel, column or tap gave is made up for by those that stay."""

from __future__ import annotations

from torch import nn

from crepe.vision.moments import input_moments
from crepe.vision.readers import fit_to_kept
from crepe.vision.removal import Removal
from crepe.vision.repairs.base import REPAIRS, Batches, Repair


def compensate(model: nn.Module, removal: Removal, batches: Batches) -> None:
    """Fit every layer that loses inputs or weights to the outputs that it has over `batches`, in place.

    All layers are fitted to the inputs of the dense model, so one pass over the images suffices.
    """
    if not removal.kept:
        return
    model.eval()
    device = next(model.parameters()).device
    moments = input_moments(model, list(removal.kept), (pixels for pixels, _ in batches), device)
    fit_to_kept(model, removal.kept, moments, removal.norms)


REPAIRS.add("compensate", Repair(before=compensate))
