"""Numbers that modules keep beside their weights, such as a count of heads: which follow when units are cut out.

A config that describes the smaller model sets them all. Where a family has none, they are tried: a block with some
units cut out and these numbers made smaller must compute what it computes with the units' columns at zero.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from crepe.checkpoint.sliced import set_sizes, slice_tensors
from crepe.models.blocks import Block
from crepe.models.coupling import scope_of
from crepe.models.probe import Run, random_weights, real_tensors, unchanged
from crepe.models.units import UnitGroup, every_other, removed
from crepe.models.views import inventory
from crepe.pipeline.units import cuts_of


def following_attributes(group: UnitGroup, block: Block, blocks: Sequence[Block], run: Run) -> dict[str, int] | None:
    """Names of attributes -> how much of the number one unit makes up; None where cutting is not enough.

    blocks: all of the model: a number that differs between them, such as a layer's index, is no size.
    """
    candidates = _candidates(group, block, blocks)
    choices = [candidates, *({n: f for n, f in candidates.items() if n != left} for left in candidates)]
    with random_weights(block.module, inventory(block, None).views):
        before, trials = real_tensors(run()), []
        for select in (every_other, _last_half):
            with removed([group.consumer], select):
                trials.append((~select(group.units), real_tensors(run())))

        def follow(chosen: Mapping[str, int]) -> bool:
            for kept, masked in trials:
                with _cut(group, block, kept, chosen):
                    found = _tensors_if_it_runs(run)
                if not _same(masked, found, before):
                    return False
            return True

        return next((chosen for chosen in choices if follow(chosen)), None)


def _last_half(units: int) -> Tensor:
    """A forward may split heads into groups of a fixed number and ask for as many from each: `every_other` leaves them,
    this does not."""
    return torch.arange(units) >= (units + 1) // 2


def _candidates(group: UnitGroup, block: Block, blocks: Sequence[Block]) -> dict[str, int]:
    """Numbers of the module around the consumer that are a count of its units, heads or columns."""
    sizes = {group.units * each: each for each in (group.width, group.heads, 1)}
    scope = scope_of(group.view)
    inside = scope.removeprefix(block.name).removeprefix(".")
    others = [_submodule(other, inside) for other in blocks]
    found = {}
    for name, value in vars(block.module.get_submodule(inside)).items():
        if not isinstance(value, int) or isinstance(value, bool) or value not in sizes:
            continue
        if all(getattr(other, name, value) == value for other in others if other is not None):
            found[f"{scope}.{name}"] = sizes[value]
    return found


def _submodule(block: Block, path: str) -> nn.Module | None:
    try:
        return block.module.get_submodule(path)
    except AttributeError:
        return None


@contextmanager
def _cut(group: UnitGroup, block: Block, kept: Tensor, attributes: Mapping[str, int]) -> Iterator[None]:
    """The block without some units inside: smaller parameters, smaller numbers, and those of Linear and Conv1D."""
    owners = {part.name: (part.owner, part.attribute) for part in group.parts}
    parameters = {name: owner._parameters[attribute] for name, (owner, attribute) in owners.items()}
    cuts = cuts_of([group], {group.name: kept})
    smaller = slice_tensors({name: p.detach() for name, p in parameters.items() if p is not None}, cuts)
    scope = block.module.get_submodule(scope_of(group.view).removeprefix(block.name).removeprefix("."))
    modules = {scope, *(owner for owner, _ in owners.values())}
    saved = {module: {n: v for n, v in vars(module).items() if isinstance(v, int)} for module in modules}
    try:
        for name, (owner, attribute) in owners.items():
            owner._parameters[attribute] = nn.Parameter(smaller[name], requires_grad=False)
            set_sizes(owner, attribute)
        for name, each in attributes.items():
            setattr(scope, name.rpartition(".")[2], each * int(kept.sum()))
        yield
    finally:
        for name, (owner, attribute) in owners.items():
            owner._parameters[attribute] = parameters[name]
        for module, values in saved.items():
            vars(module).update(values)


def _tensors_if_it_runs(run: Run) -> list[Tensor]:
    try:
        return real_tensors(run())
    except (RuntimeError, ValueError, IndexError):
        return []


def _same(masked: Sequence[Tensor], found: Sequence[Tensor], before: Sequence[Tensor]) -> bool:
    if not len(masked) == len(found) == len(before):
        return False
    return all(a.shape == b.shape and unchanged(a, b, c) for a, b, c in zip(masked, found, before, strict=True))
