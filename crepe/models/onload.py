"""Weights of one block in memory, the rest on disk.

transformers and accelerate place the model: its parameters are on the meta device and a map knows the file of each.
Outside the blocks accelerate's own hooks load what a forward needs. A block is onloaded once for all batches instead
of once per call, so its hooks are taken off and its tensors come and go here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn

from crepe.errors import CrepeError
from crepe.models.blocks import Block


class WeightStore:
    """Reads parameters of a disk-offloaded model by name; empty for a model that is in memory."""

    def __init__(self, model: nn.Module) -> None:
        self._weights: Mapping[str, Tensor] = {}
        for module in model.modules():
            hook: Any = getattr(module, "_hf_hook", None)
            for candidate in getattr(hook, "hooks", [hook]):
                found = getattr(candidate, "weights_map", None)
                if found is not None:
                    self._weights = getattr(found, "dataset", found)
                    return

    def mapped(self, name: str) -> Tensor:
        """One parameter, to be read only: its memory is the file's. Raises CrepeError where it cannot be read."""
        try:
            return self._weights[name]
        except (KeyError, OSError, RuntimeError, ValueError) as error:
            raise CrepeError(f"cannot read tensor {name!r} of the model: {error}") from error


def take_over(model: nn.Module, blocks: Sequence[Block], device: torch.device) -> WeightStore:
    """From here on the blocks' weights come and go with `onloaded`, everything else with accelerate's hooks."""
    from accelerate.hooks import remove_hook_from_module

    store = WeightStore(model)
    for block in blocks:
        remove_hook_from_module(block.module, recurse=True)
    for module in model.modules():
        hook = getattr(module, "_hf_hook", None)
        for part in getattr(hook, "hooks", [hook]):
            if getattr(part, "execution_device", None) is not None:
                part.execution_device = device
    return store


@contextmanager
def onloaded(block: Block, store: WeightStore, device: torch.device) -> Iterator[None]:
    """The block's parameters and buffers are on `device` inside, and back on disk (or the CPU) after."""
    origins = _origins(block.module)
    for path, module, attribute in origins:
        tensor = getattr(module, attribute)
        name = ".".join(part for part in (block.name, path, attribute) if part)
        # A copy, because pruning writes into it; a private mapping would count the file's pages as well.
        value = store.mapped(name).to(device, copy=True) if tensor.is_meta else tensor.to(device)
        if value.shape != tensor.shape:
            raise CrepeError(f"tensor {name!r} is {tuple(value.shape)} on disk, the config wants {tuple(tensor.shape)}")
        _place(module, attribute, value)
    if not block.name and hasattr(block.module, "tie_weights"):
        # Read from disk one by one, shared tensors have to become one again.
        block.module.tie_weights()  # type: ignore[operator]
    try:
        yield
    finally:
        for (_, module, attribute), origin in origins.items():
            tensor = getattr(module, attribute)
            _place(module, attribute, tensor.to(origin) if tensor.device != origin else tensor)
        _return_freed_memory()


def _return_freed_memory() -> None:
    """Give what a block has freed back to the system: glibc keeps pieces below 32 MB, and they add up over blocks."""
    import ctypes

    with suppress(OSError, AttributeError):  # another C library keeps its own house
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def _origins(module: nn.Module) -> dict[tuple[str, nn.Module, str], torch.device]:
    origins = {}
    for path, child in module.named_modules():
        for attribute, tensor in [*child.named_parameters(recurse=False), *child.named_buffers(recurse=False)]:
            origins[(path, child, attribute)] = tensor.device
    return origins


def _place(module: nn.Module, attribute: str, value: Tensor) -> None:
    if attribute in module._parameters:
        old = module._parameters[attribute]
        if old is not value:
            module._parameters[attribute] = nn.Parameter(value.detach(), requires_grad=False)
    else:
        module._buffers[attribute] = value
