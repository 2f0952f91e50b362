"""Mean and covariance of what layers read, over calibration images: what compensation and refits work from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from crepe.errors import CrepeError
from crepe.vision.compensation import Moments, moments_of


class _Sums:
    """Forward pre-hook that adds up the inputs of one layer, in float64 on the processor."""

    def __init__(self) -> None:
        self.total: Tensor | None = None
        self.gram: Tensor | None = None
        self.tokens = 0

    def __call__(self, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        rows = input_rows(layer, inputs[0].detach())
        total, gram = rows.sum(0).double().cpu(), (rows.T @ rows).double().cpu()
        self.total = total if self.total is None else self.total + total
        self.gram = gram if self.gram is None else self.gram + gram
        self.tokens += len(rows)


def input_rows(layer: nn.Module, inputs: Tensor) -> Tensor:
    """What a layer multiplies its weight matrix with, (rows, in) float32: tokens, or im2col columns of a convolution.

    Raises:
        CrepeError: a layer of another kind, or a convolution with groups or padding other than zeros.
    """
    if isinstance(layer, nn.Linear):
        return inputs.float().flatten(0, -2)
    plain = isinstance(layer, nn.Conv2d) and layer.groups == 1 and not isinstance(layer.padding, str)
    if not isinstance(layer, nn.Conv2d) or not plain or layer.padding_mode != "zeros":
        raise CrepeError(
            f"inputs of {layer} cannot be unfolded: only Linear and Conv2d with one group and zero padding"
        )
    columns = nn.functional.unfold(inputs.float(), layer.kernel_size, layer.dilation, layer.padding, layer.stride)  # type: ignore[arg-type]
    return columns.transpose(1, 2).flatten(0, 1)


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
    return moments_of(found.total, found.gram, found.tokens)
