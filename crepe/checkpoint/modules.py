"""Packed parameters inside a model: a linear layer that multiplies with its weight as it lies, holders for the rest.

A holder keeps the packed tensors in the place of a parameter while a checkpoint is loaded, and gives way to the dense
parameter as soon as it is.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from crepe.checkpoint.layouts import Layout
from crepe.errors import CrepeError


class PackedLinear(nn.Module):
    """A linear layer whose weight stays packed: `weight` holds the values, buffers behind it say where they belong."""

    def __init__(self, layout: Layout, linear: nn.Linear) -> None:
        super().__init__()
        self.layout = layout
        self.in_features, self.out_features = linear.in_features, linear.out_features
        put(self, "weight", layout, linear.weight)
        self.bias = linear.bias
        self.train(linear.training)

    def forward(self, inputs: Tensor) -> Tensor:
        tensors: dict[str, Tensor] = self.packed
        bias: Tensor | None = self.bias
        dtype = autocast_dtype(inputs)
        if dtype is not None:
            inputs, tensors[""] = lowered(inputs, dtype), lowered(tensors[""], dtype)
            bias = None if bias is None else lowered(bias, dtype)
        return self.layout.linear(inputs, tensors, bias)

    @property
    def packed(self) -> dict[str, Tensor]:
        return parts_of(self, "weight", self.layout)

    def unpacked(self) -> nn.Linear:
        """The plain layer with the same weight and bias."""
        weight = self.layout.unpack(self.packed)
        linear = nn.Linear(self.in_features, self.out_features, self.bias is not None, device="meta")
        linear.weight = nn.Parameter(weight, requires_grad=False)
        linear.bias = self.bias
        return linear.train(self.training)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, layout={self.layout.name}, bias={self.bias is not None}"


def autocast_dtype(inputs: Tensor) -> torch.dtype | None:
    """What autocast makes of a linear layer's operands, None where it is off. It does so by itself only for operations
    of torch's own."""
    if not torch._C._is_any_autocast_enabled():  # first, because every forward asks
        return None
    place = inputs.device.type
    if torch.amp.is_autocast_available(place) and torch.is_autocast_enabled(place):
        return torch.get_autocast_dtype(place)
    return None


def lowered(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """As autocast does: what is in float64 stays so."""
    return tensor if tensor.dtype == torch.float64 else tensor.to(dtype)


def put(owner: nn.Module, attribute: str, layout: Layout, like: Tensor) -> None:
    """Make room for a packed parameter: the values as a parameter of that name, everything else as buffers behind it.

    like: the dense parameter, for dtype and device.
    """
    for suffix, (shape, dtype) in layout.parts().items():
        room = torch.empty(shape, dtype=dtype or like.dtype, device=like.device)
        if suffix:
            owner.register_buffer(attribute + suffix, room)
        else:
            owner.register_parameter(attribute, nn.Parameter(room, requires_grad=False))


def parts_of(owner: nn.Module, attribute: str, layout: Layout) -> dict[str, Tensor]:
    """The tensors of a packed parameter, by suffix; a loader may have marked them for training, which they are not."""
    found = {suffix: getattr(owner, attribute + suffix) for suffix in layout.suffixes}
    return {suffix: part.detach() if part.requires_grad is True else part for suffix, part in found.items()}


def runs_packed(owner: nn.Module, layout: Layout) -> bool:
    """Whether a module can take its weight as it lies: a plain linear layer, whose forward is known."""
    return layout.multiplies and type(owner) is nn.Linear


def insert(model: nn.Module, layouts: Mapping[str, Layout]) -> None:
    """Make room in `model` (on the meta device, dense) for the packed parameters, by name.

    Raises:
        CrepeError: the model has no such parameter, or one of another shape or orientation.
    """
    for name, layout in layouts.items():
        owner, attribute = owner_of(model, name)
        parameter = getattr(owner, attribute)
        if tuple(parameter.shape) != layout.shape:
            raise CrepeError(
                f"{name!r} is packed from shape {layout.shape}, the model of config.json wants {tuple(parameter.shape)}"
            )
        if isinstance(owner, nn.Linear) and layout.transposed:
            raise CrepeError(f"config.json says that {name!r} is transposed: the weight of a linear layer never is")
        if isinstance(owner, nn.Linear) and runs_packed(owner, layout):
            model.set_submodule(name.rpartition(".")[0], PackedLinear(layout, owner))
        else:
            put(owner, attribute, layout, parameter)


def settle(model: nn.Module, layouts: Mapping[str, Layout]) -> None:
    """Check every packed parameter after loading, and unpack those that no layer can multiply with.

    Raises:
        CrepeError: tensors that are no parameter in their layout, or that are offloaded.
    """
    for name, layout in layouts.items():
        owner, attribute = owner_of(model, name)
        tensors = parts_of(owner, attribute, layout)
        if any(tensor.is_meta for tensor in tensors.values()):
            raise CrepeError(
                f"packed tensor {name!r} is offloaded to disk or, beside a GPU, to the CPU, where it can be neither "
                "checked nor unpacked: load with a device_map that needs no offload, or make the model dense first: "
                "crepe convert DIR OUT --format dense"
            )
        try:
            layout.check(tensors)
        except CrepeError as error:
            raise CrepeError(f"packed tensor {name!r}: {error}") from error
        if not isinstance(owner, PackedLinear):
            replace_parts(owner, attribute, layout, layout.unpack(tensors))


def replace_parts(owner: nn.Module, attribute: str, layout: Layout, dense: Tensor) -> None:
    """Put the dense parameter where a holder was."""
    for suffix in layout.parts():
        if suffix:
            delattr(owner, attribute + suffix)
    owner.register_parameter(attribute, nn.Parameter(dense, requires_grad=False))


def unpack_layers(model: nn.Module) -> None:
    """Replace every packed layer by the plain one with the same weight."""
    for name, module in list(model.named_modules()):
        if isinstance(module, PackedLinear):
            model.set_submodule(name, module.unpacked())


def owner_of(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The module that holds a parameter, and its attribute. Raises CrepeError where there is none."""
    path, _, attribute = name.rpartition(".")
    try:
        owner = model.get_submodule(path)
        getattr(owner, attribute)
    except AttributeError:
        raise CrepeError(f"config.json describes a tensor {name!r} that the model does not have") from None
    return owner, attribute
