"""The space of CRePE coefficients, in which no two points mean the same score (but for a share of exactly 0).

A score may be multiplied by any number without changing a mask, so the three terms carry shares that add up to 1:
`neighbourhood` of the whole, and `balance` of the rest to the row term.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from crepe.criteria.coefficients import FORMS, Coefficients
from crepe.errors import UsageError, unknown

Range = tuple[float, float]
Parameters = Mapping[str, Any]


@dataclass(frozen=True)
class Space:
    """What a search may choose from.

    balance: row / (row + column); neighbourhood: its share of all three terms; activation: the exponent.
    groups: kinds of matrices that have coefficients of their own (KINDS); empty for one set per model.
    """

    balance: Range = (0.0, 1.0)
    neighbourhood: Range = (0.0, 0.5)
    activation: Range = (0.0, 1.5)
    forms: tuple[str, ...] = FORMS
    kernels: tuple[int, ...] = (3, 5, 7)
    groups: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, top in (("balance", 1.0), ("neighbourhood", 1.0), ("activation", 4.0)):
            low, high = getattr(self, name)
            if not 0 <= low < high <= top:
                raise UsageError(f"impossible space: {name} {low:g},{high:g} must be LOW,HIGH within 0..{top:g}")
        for form in self.forms:
            if form not in FORMS:
                raise unknown("neighbourhood form", form, FORMS)
        for kernel in self.kernels:
            if kernel < 3 or kernel % 2 == 0:
                raise UsageError(f"impossible space: kernel {kernel} must be odd and at least 3")
        for name in ("forms", "kernels"):
            chosen = getattr(self, name)
            if not chosen:
                raise UsageError(f"impossible space: no {name} to choose from")
            if len(set(chosen)) < len(chosen):
                raise UsageError(f"impossible space: {name} {chosen} has one of them twice")

    @property
    def continuous(self) -> dict[str, Range]:
        """Every real parameter by name with its range."""
        ranges = {"balance": self.balance, "neighbourhood": self.neighbourhood, "activation": self.activation}
        return {prefix + name: found for prefix in self._prefixes for name, found in ranges.items()}

    @property
    def categorical(self) -> dict[str, tuple[Any, ...]]:
        """Every choice by name; a choice of one is none and is left out."""
        choices: dict[str, tuple[Any, ...]] = {"form": self.forms, "kernel": self.kernels}
        return {p + name: found for p in self._prefixes for name, found in choices.items() if len(found) > 1}

    @property
    def _prefixes(self) -> tuple[str, ...]:
        return tuple(f"{group}." for group in self.groups) or ("",)

    def suggest(self, trial: Any) -> dict[str, Any]:
        """A point, asked from an optuna trial."""
        numbers = {name: trial.suggest_float(name, *found) for name, found in self.continuous.items()}
        return numbers | {name: trial.suggest_categorical(name, found) for name, found in self.categorical.items()}

    def coefficients(self, point: Parameters) -> Coefficients:
        """The coefficients at a point; those of the last group stand for every other matrix."""
        found = {prefix.rstrip("."): self._one(point, prefix) for prefix in self._prefixes}
        if not self.groups:
            return found[""]
        return replace(found[self.groups[-1]], groups={group: found[group] for group in self.groups[:-1]})

    def holds(self, one: Coefficients) -> bool:
        """Whether a set for the whole model, without a neighbourhood, lies in the space."""
        numbers = {"balance": one.row / (one.row + one.column), "neighbourhood": 0.0, "activation": one.activation}
        return all(low <= numbers[name.rpartition(".")[2]] <= high for name, (low, high) in self.continuous.items())

    def _one(self, point: Parameters, prefix: str) -> Coefficients:
        share, balance = point[prefix + "neighbourhood"], point[prefix + "balance"]
        return Coefficients(
            row=balance * (1 - share),
            column=(1 - balance) * (1 - share),
            neighbourhood=share,
            form=point.get(prefix + "form", self.forms[0]),
            kernel=point.get(prefix + "kernel", self.kernels[0]),
            activation=point[prefix + "activation"],
        )


def random_points(space: Space, count: int, seed: int) -> list[dict[str, Any]]:
    """Points drawn evenly from the space."""
    import random

    source = random.Random(seed)
    points = []
    for _ in range(count):
        numbers: dict[str, Any] = {name: source.uniform(*found) for name, found in space.continuous.items()}
        points.append(numbers | {name: source.choice(found) for name, found in space.categorical.items()})
    return points
