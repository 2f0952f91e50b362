"""What the operations ask of their tensors before a kernel sees them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, library

from crepe.kernels.dispatch import interpreting, triton_obstacle

# Other kinds of tensors want to see the operation themselves.
_PLAIN = (Tensor, torch.nn.Parameter)
DTYPES = (torch.bfloat16, torch.float16)


def aligned(tensor: Tensor) -> Tensor:
    """The same values, contiguous from an address that 16 divides: kernels read 16 bytes at once."""
    tensor = tensor.contiguous()
    return tensor if tensor.data_ptr() % 16 == 0 else tensor.clone()


def as_rows(x: Tensor) -> Tensor:
    """(..., inputs) -> (tokens, inputs), aligned."""
    return aligned(x if x.dim() == 2 else x.reshape(-1, x.shape[-1]))


def tokens_of(x: Tensor) -> int:
    """The product of the leading dimensions of (..., inputs)."""
    return x.numel() // max(x.shape[-1], 1)


_HERE = nullcontext()


def device_of(tensor: Tensor) -> AbstractContextManager[object]:
    """Launches go to the current GPU, which need not be the tensor's; where it is, changing it would only take time."""
    if not tensor.is_cuda or tensor.device.index == torch.cuda.current_device():
        return _HERE
    return torch.cuda.device(tensor.device)


class CustomOp:
    """An operation of crepe as torch knows it: `torch.ops.crepe.NAME`, whole in graphs and under torch.compile. Where
    nothing of torch watches, a call runs at once and torch sees only what happens inside.

    Registered without the checks of torch's own decorator, which at every call take longer than a small layer: the
    tests make them by torch's `opcheck`. Like that decorator it keeps torch.compile out of what runs.
    """

    def __init__(self, name: str, run: Callable[..., Any]) -> None:
        self.name = f"crepe::{name}"
        schema = library.infer_schema(run, mutates_args=())
        library.define(self.name, schema, tags=(torch.Tag.pt2_compliant_tag, torch.Tag.needs_exact_strides))
        self.run = run
        library.impl(self.name, "CompositeExplicitAutograd", torch.compiler.disable(run))
        library.register_autograd(self.name, self._backward)
        self.overload = getattr(torch.ops.crepe, name).default

    def __call__(self, *args: Any) -> Any:
        """At once where nothing watches: torch's own way to what runs takes longer than a small layer."""
        if _is_watched() or not all(map(_is_plain, args)):
            return self.overload(*args)
        return self.run(*args)

    def _backward(self, *given: Any) -> None:
        raise NotImplementedError(f"{self.name} has no backward: make the model dense (`dequantize()`) to train it")

    def register_fake(self, fake: Callable[..., Any]) -> Callable[..., Any]:
        """`fake` says shapes and dtypes of the results where no values exist."""
        library.register_fake(self.name, fake)
        return fake


def _is_watched() -> bool:
    """Whether torch compiles, traces, transforms or intercepts what is computed."""
    return bool(
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._get_tracing_state()
        or torch._C._functorch.peek_interpreter_stack()
    )


def _is_plain(argument: Any) -> bool:
    """Whether an argument needs nothing of torch but its values: no gradient, no tracing by a subclass or a proxy."""
    if not isinstance(argument, Tensor):
        return not hasattr(argument, "__torch_function__")
    return type(argument) in _PLAIN and not (argument.requires_grad and torch.is_grad_enabled())


def custom_op(name: str) -> Callable[[Callable[..., Any]], CustomOp]:
    """Register a function as the operation of crepe with this name, for torch; it writes into none of its arguments."""
    return lambda run: CustomOp(name, run)


def launched(
    launch: Callable[..., Tensor], x: Tensor, values: Tensor, positions: Tensor, *rest: Any, bias: Tensor | None
) -> Tensor:
    """What a kernel of a linear layer makes of (..., inputs): `launch` takes x as rows, the two tensors of the weight,
    `rest` and the bias."""
    with device_of(x):
        own_bias = None if bias is None else aligned(bias)
        out = launch(as_rows(x), aligned(values), aligned(positions), *rest, own_bias)
    return out if x.dim() == 2 else out.view(*x.shape[:-1], values.shape[0])


def kernel_obstacle(values: Tensor, *others: Tensor | None) -> str | None:
    """Why no kernel of this room can run on weights `values` with `others`: the place, the kind, or a mix of them."""
    reason = triton_obstacle(values)
    if reason:
        return reason
    if values.dtype not in DTYPES:
        return f"the weights are {values.dtype}: it takes torch.bfloat16 and torch.float16"
    devices = {str(tensor.device) for tensor in (values, *others) if tensor is not None}
    if len(devices) > 1:
        return f"the tensors are on {' and '.join(sorted(devices))}"
    return None if interpreting() else _gpu_obstacle(values.device)


def _gpu_obstacle(device: torch.device) -> str | None:
    """The byte permutation is an instruction of NVIDIA GPUs, and bfloat16 products came with capability 8.0."""
    if torch.version.hip:
        return "it needs an NVIDIA GPU"
    capability = torch.cuda.get_device_capability(device)
    return None if capability >= (8, 0) else f"it needs compute capability 8.0, not {capability[0]}.{capability[1]}"
