"""What the calibration images say of a model before anything is pruned: moments of the inputs of layers, and what the
model's outputs change by when one layer is pruned alone."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from crepe.vision.compensation import Moments
from crepe.vision.cut import channel_masks, hold
from crepe.vision.graph import Graph
from crepe.vision.group import Group
from crepe.vision.load import logits_of
from crepe.vision.moments import input_moments
from crepe.vision.readers import fit_to_kept
from crepe.vision.removal import removal_of

# Images on which the change of the outputs is measured: a whole set would cost a pass for every layer and share.
PROBES = 64


class Evidence:
    """Moments are read once for all layers that are asked for together, and kept.

    batches: pixel values of the calibration images; the first `PROBES` of them show the changes of the outputs.
    """

    def __init__(self, graph: Graph, batches: Sequence[Tensor], device: torch.device) -> None:
        self._graph, self._batches, self._device = graph, batches, device
        self._moments: dict[str, Moments] = {}
        self._probes = torch.split(torch.cat(list(batches))[:PROBES], len(batches[0]))
        self._dense: list[Tensor] = []

    def moments(self, names: Sequence[str]) -> dict[str, Moments]:
        """Of the inputs of the layers `names`."""
        missing = [name for name in names if name not in self._moments]
        if missing:
            model = self._graph.model.to(self._device)
            self._moments |= input_moments(model, missing, iter(self._batches), self._device)
            model.to("cpu")
        return {name: self._moments[name] for name in names}

    def gain(self, name: str) -> Tensor | None:
        """What the batch norm that alone reads the layer multiplies its outputs with, (out,)."""
        norm = self._graph.norm_behind(name)
        if norm is None:
            return None
        found = self._graph.model.get_submodule(norm)
        scale: Tensor = (found.running_var + found.eps).rsqrt()  # type: ignore[operator]
        return scale if found.weight is None else found.weight.detach().float() * scale  # type: ignore[operator]

    def shape(self, name: str) -> torch.Size:
        """Of the weight of a layer."""
        return self._graph.model.get_submodule(name).get_parameter("weight").shape

    def loss(self, groups: Sequence[Group], units: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> float:
        """KL divergence of the outputs, nats per image, from those of the dense model, with nothing pruned but this.

        What loses inputs or weights is fitted first (`fit_to_kept`), because an unrepaired layer says little of what it
        will cost repaired. groups, units, masks: as in `removal_of`.
        """
        model = copy.deepcopy(self._graph.model)
        removal = removal_of(self._graph, groups, units, masks)
        fit_to_kept(model, removal.kept, self.moments(list(removal.kept)), removal.norms)
        hold(model, {**channel_masks(model, groups, units), **masks})
        if not self._dense:
            self._dense = self._outputs(self._graph.model)
        pairs = zip(self._dense, self._outputs(model), strict=True)
        sums = [torch.nn.functional.kl_div(q, p, reduction="sum", log_target=True) for p, q in pairs]
        return float(sum(sums)) / sum(len(part) for part in self._probes)

    def _outputs(self, model: torch.nn.Module) -> list[Tensor]:
        """Log-probabilities of the probes."""
        model = model.to(self._device).eval()
        with torch.no_grad():
            found = [logits_of(model(part.to(self._device))).float().log_softmax(-1).cpu() for part in self._probes]
        model.to("cpu")
        return found
