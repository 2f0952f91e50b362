"""One dispatcher for all operations: the device and the shapes decide which backend runs."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from typing import Any

from torch import Tensor

from crepe.errors import CrepeError, unknown
from crepe.registry import Registry

# Sizes of arguments for which an operation remembers its backend.
_MOST_REMEMBERED = 4096


@dataclass(frozen=True)
class Backend:
    """One way to run an operation.

    run: takes the operation's arguments. obstacle: takes the same and says why `run` cannot serve them, None where it
    can; it looks at devices, dtypes, shapes and contiguity only, never at values. suits: takes the same, looks at the
    same, and says whether `run` is a good choice where it can; only asked where nobody named the backend.
    """

    name: str
    run: Callable[..., Any]
    obstacle: Callable[..., str | None]
    suits: Callable[..., bool] = lambda *args: True


@dataclass(frozen=True)
class Operation:
    """An operation and its backends, the preferred ones first. The last is the torch reference, which always fits."""

    name: str
    backends: tuple[Backend, ...]
    chosen: dict[Any, Backend] = field(default_factory=dict, compare=False, repr=False)

    def choose(self, *args: Any) -> Backend:
        """The first backend that can serve these arguments and suits them.

        It depends on places, kinds and sizes alone, so it is remembered by them: asking anew takes as long as a small
        layer. Arguments that are no tensors are numbers or lists of them.
        """
        signature = tuple([_kind_of(argument) for argument in args])
        found = self.chosen.get(signature)
        if found is None:
            if len(self.chosen) >= _MOST_REMEMBERED:
                self.chosen.clear()
            found = self.chosen[signature] = self._first(*args)
        return found

    def _first(self, *args: Any) -> Backend:
        return next(backend for backend in self.backends if backend.suits(*args) and backend.obstacle(*args) is None)

    def uncovered(self, *args: Any) -> str | None:
        """Why the torch reference would serve these arguments, None where a kernel would.

        The kernels are held in the order of preference, special ones first, so that the last of them that would suit
        says why even the most general one cannot.
        """
        *kernels, reference = self.backends
        if self.choose(*args) is not reference:
            return None
        suited = [kernel for kernel in kernels if kernel.suits(*args)]
        return suited[-1].obstacle(*args) if suited else "no kernel suits it"

    def run(self, *args: Any, backend: str | None = None) -> Any:
        """The result of the chosen backend, or of the one that is named: that never falls back.

        Raises:
            UsageError: no such backend. CrepeError: the named one cannot serve the arguments; the message says why.
        """
        return (self.named(backend, *args) if backend else self.choose(*args)).run(*args)

    def named(self, name: str, *args: Any) -> Backend:
        by_name = {backend.name: backend for backend in self.backends}
        if name not in by_name:
            raise unknown(f"backend of {self.name}", name, by_name)
        reason = by_name[name].obstacle(*args)
        if reason:
            raise CrepeError(f"{self.name} cannot run on backend {name!r}: {reason}")
        return by_name[name]


OPERATIONS: Registry[Operation] = Registry("operation", "crepe.kernels.operations")


def _kind_of(argument: Any) -> Any:
    """What a backend may look at: place, kind, sizes and contiguity of a tensor; other arguments as they are."""
    if isinstance(argument, Tensor):
        return argument.device, argument.dtype, argument.shape, argument.is_contiguous()
    return tuple(argument) if isinstance(argument, list) else argument


def always(*args: Any) -> str | None:
    """The obstacle of a torch reference: none."""
    return None


def triton_obstacle(tensor: Tensor) -> str | None:
    """Why no Triton kernel can run on this tensor: it is not on a GPU (unless Triton interprets), or there is no
    Triton."""
    if find_spec("triton") is None:
        return "triton is not installed; install crepe-prune[triton]"
    if not tensor.is_cuda and not interpreting():
        return f"it needs a GPU and the tensors are on {tensor.device}"
    return None


@cache
def interpreting() -> bool:
    """Whether Triton runs kernels in its interpreter, on the CPU. Asked once, because Triton itself reads the variable
    when a kernel is defined."""
    return os.environ.get("TRITON_INTERPRET") == "1"
