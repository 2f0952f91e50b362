"""Watching the inputs of weight matrices while a block runs its own forward.

A torch function mode sees every matrix product and recognises the weight by its address. That needs no hooks and no
knowledge of classes: Linear, transposed Conv1D and each expert inside a fused 3-D tensor are seen alike, also where
a module uses another module's weight directly.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from crepe.calibration.statistics import ChannelSums
from crepe.models.views import View

# Which positional argument is the input and which the weight. Plain products also occur with the weight first.
_PRODUCTS: dict[Callable[..., Any], tuple[int, int]] = {
    torch.nn.functional.linear: (0, 1),
    torch.matmul: (0, 1),
    torch.mm: (0, 1),
    torch.bmm: (0, 1),
    Tensor.matmul: (0, 1),
    Tensor.__matmul__: (0, 1),
    Tensor.mm: (0, 1),
    Tensor.bmm: (0, 1),
    torch.addmm: (1, 2),
    torch.baddbmm: (1, 2),
}
_EITHER_WAY = {torch.matmul, torch.mm, Tensor.matmul, Tensor.__matmul__, Tensor.mm}


Part = Callable[[Tensor], Tensor]


class ProductObserver(TorchFunctionMode):
    """Calls `observe` for every product with one of `views` while it is active."""

    def __init__(self, views: Sequence[View]) -> None:
        super().__init__()
        self._single = {view.matrix().data_ptr(): view for view in views}
        self._fused: dict[int, list[View]] = {}
        for view in views:
            if view.expert is not None:
                self._fused.setdefault(view.parameter.data_ptr(), []).append(view)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if func in _PRODUCTS:
            first, second = _PRODUCTS[func]
            if len(args) > second and isinstance(args[second], Tensor):
                self._match(args[first], args[second], output, _as_it_is)
                if func in _EITHER_WAY and args[first].dim() == 2 and args[second].dim() >= 2:
                    self._match(_transposed(args[second]), args[first], output, _transposed)
        return output

    def _match(self, inputs: Tensor, weight: Tensor, output: Tensor, part: Part) -> None:
        address = weight.data_ptr()
        if weight.dim() == 3 and address in self._fused:
            for index, (view, of_expert) in enumerate(zip(self._fused[address], inputs, strict=True)):
                self._observe(view, of_expert, output, partial(_entry, index=index))
        elif weight.dim() == 2 and address in self._single:
            view = self._single[address]
            if inputs.shape[-1] == view.shape[1]:
                self._observe(view, inputs, output, part)

    def _observe(self, view: View, inputs: Tensor, output: Tensor, part: Part) -> None:
        if inputs.numel():
            with torch._C.DisableTorchFunction():
                self.observe(view, inputs, output, part)

    def observe(self, view: View, inputs: Tensor, output: Tensor, part: Part) -> None:
        """inputs: (..., in), not empty; output: what the product gave; part(output): the view's outputs, (..., out)."""
        raise NotImplementedError


def _as_it_is(output: Tensor) -> Tensor:
    return output


def _transposed(output: Tensor) -> Tensor:
    return output.transpose(-1, -2)


def _entry(output: Tensor, index: int) -> Tensor:
    return output[index]


class InputRecorder(ProductObserver):
    """Adds up statistics of the inputs of `views` while it is active. State only; the sums are pure.

    needs: what is summed beside the squares: `mean`, `gram`.
    """

    def __init__(self, views: Sequence[View], needs: Collection[str] = frozenset()) -> None:
        super().__init__(views)
        self._needs = needs
        self.sums = {view.name: ChannelSums.empty(view.shape[1], view.parameter.device, needs) for view in views}
        self._last: tuple[Tensor, int, ChannelSums] | None = None

    def observe(self, view: View, inputs: Tensor, output: Tensor, part: Part) -> None:
        self.sums[view.name].add(self._sums_of(inputs))

    def _sums_of(self, inputs: Tensor) -> ChannelSums:
        """Query, key and value see the very same tensor: it is summed once."""
        if self._last and self._last[0] is inputs and self._last[1] == inputs._version:
            return self._last[2]
        result = ChannelSums.of(inputs, self._needs)
        self._last = (inputs, inputs._version, result)
        return result
