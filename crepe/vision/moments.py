"""Mean and covariance of what layers read, over calibration images: what repairs and rotations work from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from crepe.errors import CrepeError
from crepe.vision.compensation import Moments, moments_of
from crepe.vision.nets.efficientnet_lite import SameConv2d

# Images whose windows are in memory at once.
_AT_ONCE = 16


class _Sums:
    """Forward pre-hook that adds up the inputs of one layer, in float64 on the processor."""

    def __init__(self) -> None:
        self.total: Tensor | None = None
        self.gram: Tensor | None = None
        self.tokens = 0

    def __call__(self, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        for part in torch.split(inputs[0].detach(), _AT_ONCE):
            rows = input_windows(layer, part)
            total, gram = rows.sum(1).double().cpu(), (rows.mT @ rows).double().cpu()
            self.total = total if self.total is None else self.total + total
            self.gram = gram if self.gram is None else self.gram + gram
            self.tokens += rows.shape[1]


def can_unfold(layer: nn.Module) -> bool:
    """A Linear layer, or a convolution that pads with zeros."""
    if isinstance(layer, nn.Conv2d):
        return not isinstance(layer.padding, str) and layer.padding_mode == "zeros"
    return isinstance(layer, nn.Linear)


def input_windows(layer: nn.Module, inputs: Tensor) -> Tensor:
    """What a layer multiplies its weight matrix with, (groups, rows, in / groups) float32: tokens, or im2col columns
    of a convolution, apart for each of its groups.

    Raises:
        CrepeError: a layer of another kind, or a convolution with padding other than zeros.
    """
    if not can_unfold(layer):
        raise CrepeError(f"inputs of {layer} cannot be unfolded: only Linear and Conv2d with zero padding")
    if not isinstance(layer, nn.Conv2d):
        return inputs.float().flatten(0, -2)[None]
    seen = layer.padded(inputs) if isinstance(layer, SameConv2d) else inputs
    columns = nn.functional.unfold(seen.float(), layer.kernel_size, layer.dilation, layer.padding, layer.stride)  # type: ignore[arg-type]
    apart = columns.reshape(len(columns), layer.groups, -1, columns.shape[2])
    return apart.permute(1, 0, 3, 2).flatten(1, 2)


def input_rows(layer: nn.Module, inputs: Tensor) -> Tensor:
    """`input_windows` of a layer that has no groups, (rows, in).

    Raises:
        CrepeError: a layer of another kind, or a convolution with groups or padding other than zeros.
    """
    if not can_unfold(layer) or getattr(layer, "groups", 1) != 1:
        raise CrepeError(
            f"inputs of {layer} cannot be unfolded: only Linear and Conv2d with one group and zero padding"
        )
    return input_windows(layer, inputs)[0]


def input_moments(
    model: nn.Module, names: Sequence[str], batches: Iterable[Tensor], device: torch.device
) -> dict[str, Moments]:
    """Moments of the inputs of the layers `names`, which must all run. batches: pixel values.

    The sums are those of single images, so how the images are put into batches changes nothing but rounding.
    """
    sums = {name: _Sums() for name in names}
    hooks = [model.get_submodule(name).register_forward_pre_hook(found) for name, found in sums.items()]
    try:
        with torch.no_grad():
            for pixels in batches:
                model(pixels.to(device))
    finally:
        for hook in hooks:
            hook.remove()
    return {name: _moments(name, found) for name, found in sums.items()}


def _moments(name: str, found: _Sums) -> Moments:
    if found.total is None or found.gram is None:
        raise CrepeError(f"layer {name!r} saw no input: give at least one calibration image that reaches it")
    total, gram = (found.total[0], found.gram[0]) if len(found.total) == 1 else (found.total, found.gram)
    return moments_of(total, gram, found.tokens)
