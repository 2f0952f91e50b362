"""Linear layers of 16-bit floats on CPUs that have no instructions for them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from itertools import repeat
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import Parameter, functional
from torch.overrides import TorchFunctionMode

_SHORT = (torch.bfloat16, torch.float16)
# Fewer tokens at once are over before a weight is widened.
_LEAST = 32
# Numbers of the inputs, of a weight and of a result that are in float32 at once.
_MOST = 1 << 24


def wide_products(device: torch.device) -> AbstractContextManager[object]:
    """Inside, linear layers of 16-bit floats are computed in float32 and rounded once, where that is faster: torch has
    no fast products of theirs for x86 CPUs without AVX-512 (bfloat16 decides for both). So are those that autocast
    makes of others.

    It sums in another order than torch's own product in 16 bits, which rounds as often: last digits differ.
    """
    return nullcontext() if _fast(device) else _Widened()


@cache
def _fast(device: torch.device) -> bool:
    """Whether torch has fast products of 16-bit floats there. Without its library for the CPU nothing is known."""
    if device.type != "cpu":
        return True
    return not torch._C._has_mkldnn or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def wide_bytes(model: Any, device: torch.device, tokens: int) -> int:
    """What inputs, a weight and results of a layer take in float32 while `tokens` are multiplied at once; the model may
    be on the meta device."""
    if _fast(device) or model.dtype not in _SHORT:
        return 0
    shapes = [parameter.shape[-2:] for parameter in model.parameters() if parameter.dim() > 1]
    weight = max(map(math.prod, shapes), default=0)
    return 4 * (min(weight, _MOST) + 2 * min(tokens * max(map(max, shapes), default=0), _MOST))


class _Widened(TorchFunctionMode):
    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        operands = None if kwargs else _operands(function, args)
        if operands is not None and operands[0].numel() >= _LEAST * max(1, operands[0].shape[-1]):
            dtype = _dtype(*operands)
            if dtype in _SHORT:
                return _linear(dtype, *operands)
        return function(*args, **(kwargs or {}))


def _operands(function: Callable[..., Any], args: tuple[Any, ...]) -> tuple[Tensor, Tensor, Tensor | None] | None:
    """Inputs (..., in), weight (out, in) and bias of a linear layer, None where it is none."""
    if function is functional.linear:
        return (*args, None)[:3]
    if function is torch.addmm and len(args) == 3 and args[0].dim() == 1:  # with a weight that lies (in, out)
        return args[1], args[2].t(), args[0]
    return None


def _dtype(inputs: Tensor, weight: Tensor, bias: Tensor | None) -> torch.dtype | None:
    """In which torch would multiply them, None where that is not known."""
    given = [tensor for tensor in (inputs, weight, bias) if tensor is not None]
    if any(type(tensor) not in (Tensor, Parameter) or tensor.device.type != "cpu" for tensor in given):
        return None
    if weight.dim() != 2 or weight.layout != torch.strided or torch._C._functorch.peek_interpreter_stack():
        return None
    kinds = {tensor.dtype for tensor in given}
    if torch.is_autocast_enabled("cpu"):
        return torch.get_autocast_dtype("cpu") if kinds <= {*_SHORT, torch.float32} else None
    return kinds.pop() if len(kinds) == 1 else None


def _linear(dtype: torch.dtype, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """inputs (..., in) @ weight^T + bias of operands rounded to `dtype`, and so the result, computed in float32."""
    with torch.autocast("cpu", enabled=False):
        rows = inputs.reshape(-1, inputs.shape[-1]).to(dtype)
        offset = None if bias is None else bias.to(dtype)
        found: Tensor = _Product.apply(rows, weight.to(dtype), offset)  # type: ignore[no-untyped-call]
        return found.view(*inputs.shape[:-1], len(weight))


class _Product(torch.autograd.Function):
    """Keeps its operands for the gradients as they are, in 16 bits; one layer at a time is in float32."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(inputs, weight)
        return _in_parts(inputs, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        inputs, weight = ctx.saved_tensors
        wide, (of_inputs, of_weight, of_bias) = gradient.float(), ctx.needs_input_grad
        return (
            (wide @ weight.float()).to(inputs.dtype) if of_inputs else None,
            (wide.t() @ inputs.float()).to(weight.dtype) if of_weight else None,
            wide.sum(0).to(weight.dtype) if of_bias else None,
        )


def _in_parts(inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """inputs (tokens, in), weight (out, in) -> (tokens, out), so many numbers of each in float32 at once."""
    width, result = max(1, inputs.shape[1]), inputs.new_empty(len(inputs), len(weight))
    tokens = max(1, _MOST // width)
    for some, found in zip(torch.split(inputs, tokens), torch.split(result, tokens), strict=True):
        x, rows = some.float(), max(1, _MOST // max(len(some), width))
        offsets = repeat(None) if bias is None else torch.split(bias.float(), rows)
        for part, place, offset in zip(torch.split(weight, rows), torch.split(found, rows, 1), offsets, strict=False):
            place.copy_(functional.linear(x, part.float(), offset))
    return result
