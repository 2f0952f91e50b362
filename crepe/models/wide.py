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


def wide_products(device: torch.device) -> AbstractContextManager[object]:
    """Inside, `functional.linear` of 16-bit floats is computed in float32 and rounded once, where that is faster: torch
    has no fast products of theirs for x86 CPUs without AVX-512 (bfloat16 decides for both). One weight is widened at a
    time.

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
    """What the largest weight of a model takes in float32 where it is widened; the model may be on the meta device."""
    if _fast(device) or model.dtype not in _SHORT:
        return 0
    largest: int = max(math.prod(parameter.shape[-2:]) for parameter in model.parameters())
    return 4 * largest


class _Widened(TorchFunctionMode):
    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if function is functional.linear and not kwargs and _pays(*args[:2]):
            return _linear(*args)
        return function(*args, **(kwargs or {}))


def _pays(inputs: Tensor, weight: Tensor) -> bool:
    tokens = inputs.numel() // max(1, weight.shape[-1])
    plain = type(weight) in (Tensor, Parameter) and weight.device.type == "cpu" and weight.dtype in _SHORT
    return plain and inputs.dtype == weight.dtype and tokens >= _LEAST


def _linear(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """inputs (..., in) @ weight^T + bias in their dtype, computed in float32."""
    wide = functional.linear(inputs.float(), weight.float(), None if bias is None else bias.float())
    return wide.to(inputs.dtype)
