"""Small stand-ins for what a matrix sees and does: sketches of its inputs, energies of its output gradients."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from crepe.models.views import View
from crepe.pipeline.capture import ProductObserver

# Rows of a sketch: an output error estimated from it has a relative standard error of sqrt(2 / rows) per matrix row,
# and hundreds of rows are added up.
SKETCH = 192


class Sketcher(ProductObserver):
    """Sketches of inputs, and energies of output gradients where a gradient is asked for.

    sketches: (SKETCH, in) S = R X / sqrt(SKETCH) with random signs R, so that S^T S estimates the Gram matrix X^T X
    without bias (Achlioptas 2003); energies: (out,) float64, the sum over tokens of the squared gradient.
    """

    def __init__(self, views: Sequence[View], seed: int) -> None:
        super().__init__(views)
        device = views[0].parameter.device
        self.sketches = {v.name: torch.zeros(SKETCH, v.shape[1], device=device) for v in views}
        self.energies = {v.name: torch.zeros(v.shape[0], dtype=torch.float64, device=device) for v in views}
        self._generator = torch.Generator().manual_seed(seed)
        self._last: tuple[Tensor, Tensor] | None = None

    def observe(self, view: View, inputs: Tensor, output: Tensor) -> None:
        self.sketches[view.name] += self._sketch(inputs)
        if output.requires_grad:
            energy = self.energies[view.name]

            def add(gradient: Tensor) -> None:
                energy.add_(gradient.float().square().reshape(-1, len(energy)).sum(0).double())

            output.register_hook(add)

    def _sketch(self, inputs: Tensor) -> Tensor:
        """Query, key and value see the very same tensor: it is sketched once."""
        if self._last is None or self._last[0] is not inputs:
            flat = inputs.detach().float().reshape(-1, inputs.shape[-1])
            signs = torch.randint(0, 2, (SKETCH, len(flat)), generator=self._generator).to(flat) * 2 - 1
            self._last = (inputs, signs @ flat / math.sqrt(SKETCH))
        return self._last[1]


def sketch(model: Any, views: Sequence[View], rows: Tensor, seed: int) -> Sketcher:
    """Sketches of every view's inputs over `rows` (count, seqlen)."""
    sketcher = Sketcher(views, seed)
    with torch.no_grad(), sketcher:
        for row in rows.split(1):
            model(input_ids=row, use_cache=False)
    return sketcher


def sketch_with_gradients(model: Any, views: Sequence[View], rows: Tensor, seed: int) -> Sketcher:
    """Sketches, and gradient energies of -log p(y) for labels y that the model itself draws: its Fisher information.

    Weights collect no gradient; it passes through the activations alone.
    """
    sketcher = Sketcher(views, seed)
    generator = torch.Generator(device=rows.device).manual_seed(seed)
    with _gradient_from_embedding(model):
        for row in rows.split(1):
            with torch.enable_grad():
                with sketcher:
                    logits = model(input_ids=row, use_cache=False).logits.float()
                surprise = logits.log_softmax(-1).flatten(0, -2)
                drawn = torch.multinomial(surprise.detach().exp(), 1, generator=generator)
                (-surprise.gather(1, drawn).sum()).backward()
    return sketcher


class _gradient_from_embedding:  # noqa: N801 - a context manager
    """Inside, the embedding's output asks for a gradient, and so does everything behind it."""

    def __init__(self, model: Any) -> None:
        self._embedding = model.get_input_embeddings()

    def __enter__(self) -> None:
        self._hook = self._embedding.register_forward_hook(lambda module, inputs, output: output.requires_grad_())

    def __exit__(self, *error: object) -> None:
        self._hook.remove()
