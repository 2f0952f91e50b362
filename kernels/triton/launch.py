"""What launching has in common: sizes of tiles, the form of a score, the arguments of a linear layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from crepe.kernels.triton.configs import Plan


def cdiv(size: int, part: int) -> int:
    """How many parts cover `size`. Triton's own is made for kernels too and takes longer than an allocation."""
    return -(-size // part)


def tile_of(inputs: int, most: int, least: int = 16) -> int:
    """The power of two that covers `inputs`, between `least` and `most`."""
    return min(most, max(least, 1 << (inputs - 1).bit_length()))


def factors_of(norm: Tensor | None, row: Tensor | None) -> int:
    """0: the values are the scores; 1: with norm; 2: with norm, row and column."""
    return 0 if norm is None else 1 if row is None else 2


def launch(kernel: Any, grid: tuple[int, ...], plan: Plan, *args: Any, **more: Any) -> None:
    """Launch a kernel by its plan. args: its tensors and numbers in order, the first is the output; more: constants
    and options that the plan leaves open. Tensors are aligned to 16 bytes; numbers, grid and the dtypes of operands
    follow from the plan's sizes and the dtype of the output.

    So what Triton would look up at every call, the binary for these arguments, is looked up at the first: that takes
    longer than the rest of a launch. Triton's hooks around launches are called as ever; switches of its debugging count
    at the first launch only.
    """
    key = (args[0].device, args[0].dtype, *more.values())
    run = plan.ready.get(key)
    if run is not None:
        run(*args)
        return
    given = {**plan.constants, **more}
    compiled = kernel[grid](*args, **given, **plan.config.options)
    if compiled is not None:  # the interpreter compiles nothing
        plan.ready[key] = _with_constants(compiled[(*grid, 1, 1)[:3]], [given[name] for name in _constants_of(kernel)])


def _constants_of(kernel: Any) -> list[str]:
    """The constants among a kernel's parameters; all of them stand behind the others."""
    return [parameter.name for parameter in kernel.params if parameter.is_constexpr]


def _with_constants(run: Callable[..., Any], constants: list[Any]) -> Callable[..., Any]:
    """A compiled kernel takes its constants too, and ignores them."""
    return lambda *args: run(*args, *constants)


def linear(
    kernel: Any,
    grid: tuple[int, ...],
    plan: Plan,
    out: Tensor,
    operands: tuple[Tensor, ...],
    bias: Tensor | None,
    *numbers: int,
    **more: Any,
) -> Tensor:
    """Launch the kernel of a linear layer: it takes `out`, operands, bias and numbers in this order. Returns `out`."""
    launch(
        kernel, grid, plan, out, *operands, out if bias is None else bias, *numbers, **more, HAS_BIAS=bias is not None
    )
    return out
