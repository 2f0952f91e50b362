"""What blocks return beside their hidden states and nobody reads, such as attention weights.

They change with a head that goes, so an experiment that looks at them finds no heads. Whether anybody reads them is
tried: a second stream of the walk passes NaN on in their place, and a reader shows it in what the next blocks are
called with. Behind the last block nothing runs; it counts as the blocks before it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from crepe.models.blocks import Block
from crepe.models.probe import Run, real_tensors
from crepe.pipeline.fold import run_once
from crepe.pipeline.walk import Call, Walk

# Streams of the walk; see `Walk`.
STREAMS = 2
_SPOILED = 1


@dataclass
class Unread:
    """What one pass over the blocks has shown.

    tried: whether a block has passed NaN on; read: whether it came back; ignored: the blocks whose experiments relied
    on that it would not.
    """

    tried: bool = False
    read: bool = False
    ignored: list[str] = field(default_factory=list)

    def run_once(self, block: Block, walk: Walk) -> Run:
        """`run_once` without what nobody reads. To be called once for every block, before the walk goes on."""
        if not walk.is_last(block):
            walk.advance(block, _SPOILED, lambda output: without_extras(output, _nan))
            following = walk.blocks[walk.blocks.index(block) + 1]
            self.tried, self.read = True, self.read or any(map(_has_nan, walk.calls(following, _SPOILED)))
        if self.read or not self.tried:
            return run_once(block, walk)
        self.ignored.append(block.name)
        return run_once(block, walk, without_extras)


def without_extras(output: Any, instead: Callable[[Tensor], Tensor | None] = lambda extra: None) -> Any:
    """`output` with `instead` in place of every tensor of real numbers that has not the shape of the first one, the
    hidden states."""
    tensors = real_tensors(output)

    def changed(value: Any) -> Any:
        if type(value) in (tuple, list):
            return type(value)(changed(member) for member in value)
        if isinstance(value, Tensor) and value.is_floating_point() and value.shape != tensors[0].shape:
            return instead(value)
        return value

    return changed(output)


def _nan(extra: Tensor) -> Tensor:
    return torch.full_like(extra, torch.nan)


def _has_nan(call: Call) -> bool:
    return any(bool(tensor.isnan().any()) for tensor in real_tensors([call.args, call.kwargs]))
