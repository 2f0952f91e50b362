"""What a refinement is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from crepe.errors import UsageError
from crepe.masks.matrix import Matrix
from crepe.masks.pattern import Compare, Pattern
from crepe.registry import Registry

Obstacle = Callable[[Pattern, Compare], str | None]


def _none(pattern: Pattern, compare: Compare) -> str | None:
    return None


@dataclass(frozen=True)
class Repair:
    """What all refinements have in common.

    needs: statistics beside `norm` that must be there. obstacle: pattern and comparison group -> why it cannot be used
    with them, None where it can. sequential: it only makes sense where blocks see the pruned ones before them.
    """

    needs: frozenset[str] = frozenset({"gram"})
    obstacle: Obstacle = _none
    sequential: bool = False

    def require_fit(self, name: str, pattern: Pattern, compare: Compare) -> None:
        """Raises UsageError where the refinement is not defined for the pattern."""
        reason = self.obstacle(pattern, compare)
        if reason:
            raise UsageError(f"refinement {name!r} does not fit pattern {pattern}: {reason}")


@dataclass(frozen=True)
class Refinement(Repair):
    """Changes one matrix after selection: another mask, other surviving weights, or both."""

    function: Callable[[Matrix], Matrix] = field(kw_only=True)


@dataclass(frozen=True)
class Folding(Repair):
    """Reorders a consumer's input channels before selection, with the producers' rows, so that the model stays the
    same. function: (score (out, in), groups of columns that may change places, n, m) -> order (in,)."""

    function: Callable[..., Tensor] = field(kw_only=True)


@dataclass(frozen=True)
class BlockRefinement(Repair):
    """Changes all surviving weights of a block together, after every matrix of it."""

    function: Callable[[BlockFit], Fit] = field(kw_only=True)
    sequential: bool = True


@dataclass(frozen=True)
class BlockFit:
    """A pruned block as a block refinement sees it.

    parameters: the block's floating-point parameters by name; kept: masks of the same shapes, for those that have one.
    run(parameters, batch number) -> the block's output; targets: the dense model's output of each batch.
    """

    parameters: Mapping[str, Tensor]
    kept: Mapping[str, Tensor]
    run: Callable[[Mapping[str, Tensor], int], Tensor]
    targets: Sequence[Tensor]
    steps: int
    seed: int


@dataclass(frozen=True)
class Fit:
    """What a block refinement found. before, after: the block's error on batches that the fit did not see."""

    parameters: Mapping[str, Tensor]
    before: float
    after: float


REFINEMENTS: Registry[Any] = Registry("refinement", "crepe.refine")
