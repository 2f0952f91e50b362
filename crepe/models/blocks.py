"""Finding the repeated blocks of a network by structure."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class Block:
    """One repeated layer. name: its path in the model, "" for the whole model."""

    name: str
    module: nn.Module


def find_blocks(model: nn.Module) -> list[Block]:
    """The blocks of `model` in the order in which the model holds them; empty where no list is found.

    Blocks are the members of the module lists that consist of what the model itself declares unsplittable, and
    else of the longest list of layers that support gradient checkpointing. Lists inside a block do not count, and
    neither do blocks that share parameters with each other, because they cannot be pruned one after the other.
    """
    lists = _outermost(_declared_lists(model) or _checkpointed_list(model))
    blocks = [Block(f"{name}.{i}", member) for name, members in lists for i, member in enumerate(members)]
    return [] if _share_parameters(blocks) else blocks


def _declared_lists(model: nn.Module) -> list[tuple[str, nn.ModuleList]]:
    declared = set(getattr(model, "_no_split_modules", None) or ())
    lists = _module_lists(model)
    return [(n, m) for n, m in lists if any(type(x).__name__ in declared for x in m)]


def _checkpointed_list(model: nn.Module) -> list[tuple[str, nn.ModuleList]]:
    lists = [(n, m) for n, m in _module_lists(model) if all(hasattr(x, "gradient_checkpointing") for x in m)]
    return sorted(lists, key=lambda pair: -len(pair[1]))[:1]


def _module_lists(model: nn.Module) -> list[tuple[str, nn.ModuleList]]:
    return [(n, m) for n, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m)]


def _outermost(lists: list[tuple[str, nn.ModuleList]]) -> list[tuple[str, nn.ModuleList]]:
    return [(n, m) for n, m in lists if not any(n.startswith(other + ".") for other, _ in lists)]


def _share_parameters(blocks: list[Block]) -> bool:
    seen: set[int] = set()
    for block in blocks:
        own = {id(parameter) for parameter in block.module.parameters()}
        if own & seen:
            return True
        seen |= own
    return False
