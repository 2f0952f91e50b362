"""Small stand-ins for what a matrix sees and does: sketches of its inputs, energies of its output gradients."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from crepe.models.views import View
from crepe.pipeline.capture import Part, ProductObserver

# Rows of a sketch: an output error estimated from it has a relative standard error of sqrt(2 / rows) per matrix row,
# and hundreds of rows are added up.
SKETCH = 192


class Sketcher(ProductObserver):
    """Sketches of the inputs X (tokens, in) of every view, and what a backward pass tells about its outputs.

    sketches: (SKETCH, in) S = R X / sqrt(SKETCH) with random signs R, so that S^T S estimates the Gram matrix X^T X
    without bias (Achlioptas 2003). Where gradients g (tokens, out) flow, each token t counts with |g_t|: S^T S then
    estimates sum_t |g_t|^2 x_t x_t^T, and energies (out,) float64 is sum_t g_t^2.
    """

    def __init__(self, views: Sequence[View], seed: int) -> None:
        super().__init__(views)
        device = views[0].parameter.device
        self.sketches = {v.name: torch.zeros(SKETCH, v.shape[1], device=device) for v in views}
        self.energies = {v.name: torch.zeros(v.shape[0], dtype=torch.float64, device=device) for v in views}
        self._generator = torch.Generator().manual_seed(seed)
        self._last: tuple[Tensor, Tensor] | None = None

    def observe(self, view: View, inputs: Tensor, output: Tensor, part: Part) -> None:
        seen = inputs.detach().reshape(-1, inputs.shape[-1])
        signs = self._signs(inputs, len(seen))
        if not output.requires_grad:
            self.sketches[view.name] += signs @ seen.float()
            return

        def add(gradient: Tensor) -> None:
            square = part(gradient).reshape(len(seen), -1).float().square()
            self.energies[view.name] += square.sum(0).double()
            self.sketches[view.name] += signs @ (seen.float() * square.sum(1, keepdim=True).sqrt())

        output.register_hook(add)

    def _signs(self, inputs: Tensor, tokens: int) -> Tensor:
        """(SKETCH, tokens); query, key and value see the very same tensor and share them."""
        if self._last is None or self._last[0] is not inputs:
            drawn = torch.randint(0, 2, (SKETCH, tokens), generator=self._generator)
            self._last = (inputs, (drawn * 2 - 1).to(inputs.device, torch.float32) / math.sqrt(SKETCH))
        return self._last[1]


def sketch(model: Any, views: Sequence[View], rows: Tensor, seed: int) -> Sketcher:
    """Sketches of every view's inputs over `rows` (count, seqlen)."""
    sketcher = Sketcher(views, seed)
    with torch.no_grad(), sketcher:
        for row in rows.split(1):
            model(input_ids=row, use_cache=False)
    return sketcher


def sketch_with_gradients(model: Any, views: Sequence[View], rows: Tensor, seed: int) -> Sketcher:
    """Sketches and energies for the gradients of -log p(y), with labels y that the model itself draws: its Fisher
    information. Weights collect no gradient; it passes through the activations alone."""
    sketcher = Sketcher(views, seed)
    generator = torch.Generator(device=rows.device).manual_seed(seed)
    with gradient_through_activations(model):
        for row in rows.split(1):
            with torch.enable_grad():
                with sketcher:
                    logits = model(input_ids=row, use_cache=False).logits.float()
                surprise = logits.log_softmax(-1).flatten(0, -2)
                drawn = torch.multinomial(surprise.detach().exp(), 1, generator=generator)
                (-surprise.gather(1, drawn).sum()).backward()
    return sketcher


@contextmanager
def gradient_through_activations(model: Any) -> Iterator[None]:
    """Inside, the embedding's output asks for a gradient, and so does everything behind it, but no weight."""
    asking = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.requires_grad_(False)
    hook = model.get_input_embeddings().register_forward_hook(lambda module, inputs, output: output.requires_grad_())
    try:
        yield
    finally:
        hook.remove()
        for parameter in asking:
            parameter.requires_grad_()
