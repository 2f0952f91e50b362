"""What the calibration images say about the channels of each group."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor, nn

from crepe.vision.group import Group, Member
from crepe.vision.load import logits_of

Batches = Iterable[tuple[Tensor, Tensor]]
Statistic = Callable[[nn.Module, Iterable[Group], Batches, torch.device], dict[str, Tensor]]


def taylor(
    model: nn.Module, groups: Iterable[Group], batches: Iterable[tuple[Tensor, Tensor]], device: torch.device
) -> dict[str, Tensor]:
    """Sum over batches of (sum of gradient times weight of the filter)^2, over all makers: group name -> (width,).

    The loss is the cross entropy; Molchanov et al. 2019, eq. 8. batches: (pixel values, labels).
    """
    groups = list(groups)
    found = {group.name: torch.zeros(group.width) for group in groups}
    trained = {name: p.requires_grad for name, p in model.named_parameters()}
    model.requires_grad_(True)
    for pixels, labels in batches:
        model.zero_grad(set_to_none=True)
        logits = logits_of(model(pixels.to(device)))
        nn.functional.cross_entropy(logits, labels.to(device)).backward()  # type: ignore[no-untyped-call]
        for group in groups:
            found[group.name] += sum(_product(model, member).square() for member in group.makers)
    model.zero_grad(set_to_none=True)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trained[name])
    return found


def _product(model: nn.Module, member: Member) -> Tensor:
    """(width,): sum of gradient times weight of each filter."""
    weight: Tensor = model.get_submodule(member.name).weight  # type: ignore[assignment]
    gradient = weight.grad if weight.grad is not None else torch.zeros_like(weight)
    sums = (gradient * weight.detach()).flatten(1).sum(1).cpu().float()
    return sums[member.indices[:, 0]]


def activation(model: nn.Module, groups: Iterable[Group], batches: Batches, device: torch.device) -> dict[str, Tensor]:
    """Mean absolute value of each channel where the first layer that reads it gets it: group name -> (width,)."""
    groups = [group for group in groups if group.users]
    sums = {group.name: torch.zeros(group.width) for group in groups}
    counts = dict.fromkeys(sums, 0)
    hooks = []

    def watch(group: Group) -> None:
        member = group.users[0]

        def count(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            values = inputs[0].detach().abs()
            rows = values.flatten(2).mean(2) if isinstance(module, nn.Conv2d) else values.flatten(0, -2)
            sums[group.name] += rows[:, member.indices.to(rows.device)].mean(2).sum(0).cpu().float()
            counts[group.name] += len(rows)

        hooks.append(model.get_submodule(member.name).register_forward_pre_hook(count))

    for group in groups:
        watch(group)
    with torch.no_grad():
        for pixels, _ in batches:
            model(pixels.to(device))
    for hook in hooks:
        hook.remove()
    return {name: total / max(counts[name], 1) for name, total in sums.items()}


# By the name that a part of a method asks for.
STATISTICS: Mapping[str, Statistic] = MappingProxyType({"taylor": taylor, "activation": activation})
