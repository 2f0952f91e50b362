"""The shapes that a cut model has, written down and given to a dense one: a checkpoint is rebuilt without pickle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from crepe.errors import CrepeError

Shapes = dict[str, list[int]]


def shapes_of(model: nn.Module) -> Shapes:
    """Name -> shape of every parameter and buffer that is saved."""
    return {name: list(tensor.shape) for name, tensor in model.state_dict().items()}


def changed(before: Shapes, after: Shapes) -> Shapes:
    """Entries of `after` that differ from `before`."""
    return {name: shape for name, shape in after.items() if before.get(name) != shape}


def resize(model: nn.Module, shapes: Mapping[str, Sequence[int]]) -> None:
    """Give the named tensors of `model` their recorded shapes, and their modules the widths that go with them.

    The new tensors hold zeros: a state dict has to be loaded afterwards.

    Raises:
        CrepeError: a name that the model does not have.
    """
    for module_name, entries in _by_module(shapes).items():
        try:
            module = model.get_submodule(module_name)
        except AttributeError as error:
            raise CrepeError(f"the manifest names {module_name!r}, which the dense model does not have") from error
        depthwise = isinstance(module, nn.Conv2d) and module.groups == module.in_channels == module.out_channels
        for leaf, shape in entries.items():
            _replace(module, leaf, shape, f"{module_name}.{leaf}")
        _set_widths(module, depthwise)


def _by_module(shapes: Mapping[str, Sequence[int]]) -> dict[str, dict[str, Sequence[int]]]:
    found: dict[str, dict[str, Sequence[int]]] = {}
    for name, shape in shapes.items():
        module, _, leaf = name.rpartition(".")
        found.setdefault(module, {})[leaf] = shape
    return found


def _replace(module: nn.Module, leaf: str, shape: Sequence[int], name: str) -> None:
    old: Any = getattr(module, leaf, None)
    if not isinstance(old, torch.Tensor):
        raise CrepeError(f"the manifest names {name!r}, which the dense model does not have")
    fresh = old.new_zeros(tuple(shape))
    setattr(module, leaf, nn.Parameter(fresh, old.requires_grad) if isinstance(old, nn.Parameter) else fresh)


def _set_widths(module: nn.Module, depthwise: bool) -> None:
    weight: Any = getattr(module, "weight", None)
    if isinstance(module, nn.Conv2d):
        module.groups = weight.shape[0] if depthwise else module.groups
        module.out_channels, module.in_channels = weight.shape[0], weight.shape[1] * module.groups
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = weight.shape
    elif isinstance(module, nn.BatchNorm2d):
        module.num_features = module.running_mean.shape[0] if module.running_mean is not None else weight.shape[0]
    elif isinstance(module, nn.LayerNorm):
        module.normalized_shape = tuple(weight.shape)


def set_attributes(model: nn.Module, attributes: Mapping[str, Mapping[str, Any]]) -> None:
    """Plain values of modules that a forward reads, such as the size of an attention head."""
    for name, values in attributes.items():
        module = model.get_submodule(name)
        for key, value in values.items():
            setattr(module, key, value)
