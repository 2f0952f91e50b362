"""Linear layers of 16-bit floats on CPUs that have no instructions for them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter, functional
from torch.overrides import TorchFunctionMode

_SHORT = (torch.bfloat16, torch.float16)
# Fewer tokens at once are over before a weight is widened.
_LEAST = 32
# Numbers of a weight, and of a result, that are in float32 at once.
_MOST = 1 << 24


def wide_products(device: torch.device) -> AbstractContextManager[object]:
    """Inside, `functional.linear` of 16-bit floats, also of those that autocast makes, is computed in float32 and
    rounded once, where that is faster: torch has no fast products of theirs for x86 CPUs without AVX-512 (bfloat16
    decides for both).

    It sums in another order than torch's own product in 16 bits, which rounds as often: last digits differ.
    """
    return nullcontext() if _fast(device) else _Widened()


@cache
def _fast(device: torch.device) -> bool:
    """Whether torch has fast products of 16-bit floats there. Without its library for the CPU nothing is known."""
    if device.type != "cpu":
        return True
    return not torch._C._has_mkldnn or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def wide_bytes(model: Any, device: torch.device) -> int:
    """What weights of a model and results take in float32 while a few tokens are multiplied, or more with a part of a
    weight at a time; the model may be on the meta device."""
    if _fast(device) or model.dtype not in _SHORT:
        return 0
    largest: int = max(math.prod(parameter.shape[-2:]) for parameter in model.parameters())
    return 4 * min(largest, _MOST)


class _Widened(TorchFunctionMode):
    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if function is functional.linear and not kwargs:
            dtype = _dtype(*args[:2])
            if dtype in _SHORT and args[0].numel() >= _LEAST * args[1].shape[-1]:
                return _linear(dtype, *args)
        return function(*args, **(kwargs or {}))


def _dtype(inputs: Tensor, weight: Tensor) -> torch.dtype | None:
    """In which torch would multiply the two, None where that is not known."""
    if type(weight) not in (Tensor, Parameter) or weight.dim() != 2 or weight.device.type != "cpu":
        return None
    if torch.is_autocast_enabled("cpu"):
        return None if torch.float64 in (inputs.dtype, weight.dtype) else torch.get_autocast_dtype("cpu")
    return weight.dtype if inputs.dtype == weight.dtype else None


def _linear(dtype: torch.dtype, inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """inputs (..., in) @ weight^T + bias of operands rounded to `dtype`, and so the result, computed in float32. Where
    nothing is differentiated a part of the outputs at a time."""
    with torch.autocast("cpu", enabled=False):
        x, own_bias = _widened(inputs, dtype), None if bias is None else _widened(bias, dtype)
        rows = max(1, _MOST // max(x.numel() // x.shape[-1], x.shape[-1]))
        if len(weight) <= rows or _has_gradient(inputs, weight):
            return functional.linear(x, _widened(weight, dtype), own_bias).to(dtype)
        result = x.new_empty(*x.shape[:-1], len(weight), dtype=dtype)
        for first in range(0, len(weight), rows):
            part = slice(first, first + rows)
            some_bias = None if own_bias is None else own_bias[part]
            result[..., part] = functional.linear(x, _widened(weight[part], dtype), some_bias)
        return result


def _widened(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype).float()


def _has_gradient(*tensors: Tensor) -> bool:
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
