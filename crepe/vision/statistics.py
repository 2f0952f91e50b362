"""What the calibration images say about the channels of each group."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor, nn

from crepe.vision.class_token import ClassRows, prefix_tokens
from crepe.vision.group import Group, Member
from crepe.vision.load import logits_of
from crepe.vision.token_channels import image_importance

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


def tokens(model: nn.Module, groups: Iterable[Group], batches: Batches, device: torch.device) -> dict[str, Tensor]:
    """The importance of each channel for class token and patches where a Linear layer reads it, by
    `crepe.vision.token_channels.image_importance`, averaged over images: group name -> (width,)."""
    read = [g for g in groups if g.users and isinstance(model.get_submodule(g.users[0].name), nn.Linear)]
    sums = {group.name: torch.zeros(group.width) for group in read}
    counts = dict.fromkeys(sums, 0)
    rows, prefix = ClassRows(model), prefix_tokens(model)
    hooks = list(rows.handles)

    def watch(group: Group) -> None:
        member = group.users[0]

        def count(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            # Without tokens, as behind a pooling, each image is one patch.
            values = inputs[0].detach().reshape(len(inputs[0]), -1, inputs[0].shape[-1])
            before = prefix if prefix < values.shape[1] else 0
            importance = image_importance(values, rows.row_for(values) if before else None, before)
            sums[group.name] += importance[:, member.indices.to(importance.device)].mean(2).sum(0).cpu()
            counts[group.name] += len(importance)

        hooks.append(model.get_submodule(member.name).register_forward_pre_hook(count))

    for group in read:
        watch(group)
    with torch.no_grad():
        for pixels, _ in batches:
            model(pixels.to(device))
    for hook in hooks:
        hook.remove()
    return {name: total / max(counts[name], 1) for name, total in sums.items()}


# By the name that a part of a method asks for.
STATISTICS: Mapping[str, Statistic] = MappingProxyType({"taylor": taylor, "tokens": tokens})
