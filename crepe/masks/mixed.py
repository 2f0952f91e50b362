"""Mixed patterns: each tensor takes one of a few patterns, such as `dense+2:4+4:8`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from crepe.errors import CrepeError, UsageError
from crepe.masks.pattern import Compare, NofM, Pattern, parse_pattern


@dataclass(frozen=True)
class Dense(Pattern):
    """No zeros at all: the option of a mix that leaves a tensor as it is."""

    def __str__(self) -> str:
        return "dense"

    @property
    def fixed_sparsity(self) -> float:
        return 0.0

    def select(self, score: Tensor, sparsity: float, compare: Compare = "tensor") -> Tensor:
        return torch.ones_like(score, dtype=torch.bool)

    def violations(self, mask: Tensor) -> int:
        return mask.numel() - int(torch.count_nonzero(mask))


@dataclass(frozen=True)
class Mixed(Pattern):
    """One of `options` for each tensor, by its sparsity. options: at least two, each `Dense` or `NofM`."""

    options: tuple[Pattern, ...]

    def __str__(self) -> str:
        return "+".join(str(option) for option in self.options)

    @property
    def alternatives(self) -> tuple[Pattern, ...]:
        return self.options

    @property
    def sparsities(self) -> tuple[float, ...]:
        return _sparsities(self.options)

    def sparsities_of(self, shape: tuple[int, ...]) -> tuple[float, ...]:
        return _sparsities(self._fitting(shape))

    def obstacle(self, shape: tuple[int, ...]) -> str | None:
        """A matrix needs one option that fits; with `dense` among them it can always stay as it is."""
        if self._fitting(shape):
            return None
        return "; ".join(dict.fromkeys(str(option.obstacle(shape)) for option in self.options))

    def option_for(self, sparsity: float, score: Tensor | None = None) -> Pattern:
        """The option whose sparsity is nearest to `sparsity`; of two equally near the one that keeps more weights.

        Of several with the same sparsity the one whose mask keeps the largest sum of scores, such as 4:8 before 2:4,
        whose masks it contains, and the first listed among equals or where no score is given. score: (out, in);
        options that do not fit its shape are passed over.
        """
        options = self.options if score is None else self._require_fitting(score)
        near = min(_sparsities(options), key=lambda own: (abs(own - sparsity), own))
        equal = [option for option in options if option.fixed_sparsity == near]
        if score is None or len(equal) == 1:
            return equal[0]
        return max(equal, key=lambda option: _retained(option, score))

    def select(self, score: Tensor, sparsity: float, compare: Compare = "tensor") -> Tensor:
        return self.option_for(sparsity, score).select(score, sparsity, compare)

    def violations(self, mask: Tensor) -> int:
        """0 where the mask satisfies some option, else the violations of the option that is broken least."""
        return min(option.violations(mask) for option in self._require_fitting(mask))

    def _fitting(self, shape: tuple[int, ...]) -> tuple[Pattern, ...]:
        return tuple(option for option in self.options if option.obstacle(shape) is None)

    def _require_fitting(self, tensor: Tensor) -> tuple[Pattern, ...]:
        shape = tuple(tensor.shape)
        if not self._fitting(shape):
            raise CrepeError(f"pattern {self} does not fit a tensor of shape {shape}: {self.obstacle(shape)}")
        return self._fitting(shape)


def parse_mixed(text: str) -> Pattern:
    """`dense`, or options joined by `+`, each `dense` or N:M, no two the same.

    Raises:
        UsageError: anything else.
    """
    options = tuple(_parse_options(text))
    if len(set(options)) < len(options):
        raise UsageError(f"pattern {text!r} names an option twice: use each once, such as dense+2:4")
    return options[0] if len(options) == 1 else Mixed(options)


def _parse_options(text: str) -> Iterator[Pattern]:
    for part in text.split("+"):
        option = Dense() if part.strip() == "dense" else parse_pattern(part)
        if not isinstance(option, (Dense, NofM)):
            raise UsageError(f"pattern {text!r} mixes in {part!r}: the options are dense and N:M, such as dense+2:4")
        yield option


def _sparsities(options: tuple[Pattern, ...]) -> tuple[float, ...]:
    return tuple(sorted({own for option in options if (own := option.fixed_sparsity) is not None}))


def _retained(option: Pattern, score: Tensor) -> float:
    """Sum of the scores that the option keeps; score: (out, in)."""
    return float((score * option.select(score, 0.0)).sum(dtype=torch.float64))
