"""What an allocation rule is, and what it divides."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from crepe.masks.matrix import Matrix
from crepe.masks.pattern import Pattern
from crepe.masks.select import kept_count
from crepe.registry import Registry

Bounds = tuple[float, float]
# What a rule remembers of one tensor; empty where there is nothing to say of it.
Summary = tuple[float, ...]


@dataclass(frozen=True)
class Budget:
    """What is to be divided, the same for `measure` and `divide`.

    shapes: (out, in) of each tensor; sparsity: of all together; bounds: the lowest and the highest sparsity of those
    tensors only for which the user gave them, since a rule limits the others itself; pattern: whose `sparsities` may
    limit the choice.
    """

    shapes: Mapping[str, tuple[int, int]]
    sparsity: float
    bounds: Mapping[str, Bounds]
    pattern: Pattern

    @property
    def sizes(self) -> dict[str, int]:
        """Weights of each tensor."""
        return {name: out * inputs for name, (out, inputs) in self.shapes.items()}

    @property
    def zeros(self) -> int:
        """Zeros of all tensors together, rounded as `kept_count` does."""
        total = sum(self.sizes.values())
        return total - kept_count(total, self.sparsity)


Measure = Callable[[Mapping[str, Matrix], Budget], dict[str, Summary]]
Divide = Callable[[Mapping[str, Summary], Budget], dict[str, float]]


@dataclass(frozen=True)
class Allocation:
    """One rule.

    divide: (summaries by tensor name, budget) -> sparsity of each tensor of the budget. measure: (the matrices of one
    block by name, budget) -> a short summary of each, None where the rule needs no look at the model; it uses `dense`,
    `score`, `compare` and `statistics` of a matrix. needs: statistics beside `norm` that `measure` reads.
    """

    divide: Divide
    measure: Measure | None = None
    needs: frozenset[str] = frozenset()


ALLOCATIONS: Registry[Allocation] = Registry("allocation", "crepe.allocation")
