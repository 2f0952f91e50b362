"""Parameters and multiply-accumulates of a network, and of what a cut would leave of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from crepe.vision.group import Group


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def macs(model: nn.Module, example: Tensor) -> int:
    """Multiply-accumulates for one image, products of attentions included. example: (count, 3, height, width)."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    # The counter does not know the fused attention of processors; as plain products it is counted everywhere.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(example[:1])
    return int(counter.get_total_flops()) // 2


def macs_by_layer(model: nn.Module, example: Tensor) -> dict[str, int]:
    """Multiply-accumulates for one image of each convolution and Linear layer."""
    found: dict[str, int] = {}
    hooks = []

    def watch(name: str) -> None:
        def count(module: nn.Module, inputs: object, output: Tensor) -> None:
            weight: Tensor = module.weight  # type: ignore[assignment]
            per_output = weight.numel() // weight.shape[0]
            found[name] = found.get(name, 0) + output.numel() * per_output

        hooks.append(model.get_submodule(name).register_forward_hook(count))

    for name, module in model.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            watch(name)
    with torch.no_grad():
        model(example[:1])
    for hook in hooks:
        hook.remove()
    return found


class Shrinking:
    """What the network costs when groups get narrower. State only: costs of the dense layers and who touches them."""

    def __init__(self, model: nn.Module, groups: Sequence[Group], example: Tensor) -> None:
        self.layers = macs_by_layer(model, example)
        self.dense = macs(model, example)
        self.groups = groups
        self.outputs = {m.name: _widths(model, m.name)[0] for g in groups for m in (*g.makers, *g.followers)}
        self.inputs = {m.name: _widths(model, m.name)[1] for g in groups for m in g.users}

    def after(self, keep: Mapping[str, int]) -> float:
        """Multiply-accumulates when each group keeps so many units. keep: group name -> units."""
        gone_out, gone_in = dict.fromkeys(self.outputs, 0.0), dict.fromkeys(self.inputs, 0.0)
        for group in self.groups:
            share = 1 - keep[group.name] / group.units
            for member in (*group.makers, *group.followers):
                gone_out[member.name] += share * member.indices.numel()
            for member in group.users:
                gone_in[member.name] += share * member.indices.numel()
        total = float(self.dense)
        for name in self.outputs.keys() | self.inputs.keys():
            out = 1 - gone_out.get(name, 0) / self.outputs.get(name, 1)
            inputs = 1 - gone_in.get(name, 0) / self.inputs.get(name, 1)
            total -= self.layers.get(name, 0) * (1 - out * inputs)
        return total


def _widths(model: nn.Module, name: str) -> tuple[int, int]:
    """(outputs, inputs) of a layer."""
    layer = model.get_submodule(name)
    if isinstance(layer, nn.Conv2d):
        return layer.out_channels, layer.in_channels
    weight: Tensor = layer.weight  # type: ignore[assignment]
    return weight.shape[0], weight.shape[1]
