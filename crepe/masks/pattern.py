"""Patterns: where zeros may lie. User strings are parsed once into a frozen value."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from crepe.errors import CrepeError, UsageError
from crepe.masks.select import kept_count, select_largest, select_n_of_m

Compare = Literal["tensor", "row", "global"]
COMPARE: tuple[str, ...] = get_args(Compare)


@dataclass(frozen=True)
class Pattern:
    """Base of all patterns: select a mask from scores, check a mask, say what is possible."""

    @property
    def fixed_sparsity(self) -> float | None:
        """The sparsity that the pattern dictates, None where it is free."""
        return None

    @property
    def sparsities(self) -> tuple[float, ...] | None:
        """The sparsities that a matrix may have, rising; None where any is possible."""
        return None if self.fixed_sparsity is None else (self.fixed_sparsity,)

    def sparsities_of(self, shape: tuple[int, ...]) -> tuple[float, ...] | None:
        """Those of `sparsities` that a matrix of `shape` (out, in) can carry; None where any is possible."""
        return () if self.obstacle(shape) else self.sparsities

    def obstacle(self, shape: tuple[int, ...]) -> str | None:
        """Why a matrix of `shape` (out, in) cannot carry this pattern, None where it can."""
        return None

    @property
    def alternatives(self) -> tuple[Pattern, ...]:
        """What `option_for` chooses from."""
        return (self,)

    def option_for(self, sparsity: float, score: Tensor | None = None) -> Pattern:
        """The pattern that a matrix with this sparsity and score gets: itself unless the pattern offers a choice."""
        return self

    def select(self, score: Tensor, sparsity: float, compare: Compare = "tensor") -> Tensor:
        """Mask of the weights to keep. score: (out, in), higher = keep; returns bool (out, in)."""
        raise NotImplementedError

    def violations(self, mask: Tensor) -> int:
        """Groups of `mask` (out, in) that break the pattern."""
        raise NotImplementedError


@dataclass(frozen=True)
class Unstructured(Pattern):
    """Zeros anywhere; the sparsity is exact per comparison group (the tensor, or each output row)."""

    def __str__(self) -> str:
        return "unstructured"

    def select(self, score: Tensor, sparsity: float, compare: Compare = "tensor") -> Tensor:
        groups = score if compare == "row" else score.reshape(1, -1)
        keep = kept_count(groups.shape[-1], sparsity)
        return select_largest(groups, keep).reshape(score.shape)

    def violations(self, mask: Tensor) -> int:
        return 0


@dataclass(frozen=True)
class NofM(Pattern):
    """At most `n` non-zeros in every `m` neighbours along the input axis."""

    n: int
    m: int

    def __str__(self) -> str:
        return f"{self.n}:{self.m}"

    @property
    def fixed_sparsity(self) -> float:
        return 1 - self.n / self.m

    def obstacle(self, shape: tuple[int, ...]) -> str | None:
        if shape[-1] % self.m:
            return f"its {shape[-1]} inputs are no multiple of {self.m}"
        return None

    def select(self, score: Tensor, sparsity: float, compare: Compare = "tensor") -> Tensor:
        self._require_divisible(score)
        return select_n_of_m(score, self.n, self.m)

    def violations(self, mask: Tensor) -> int:
        self._require_divisible(mask)
        # Bytes are added several times faster than booleans, whose sum would be of int64.
        groups = mask.to(torch.uint8).reshape(*mask.shape[:-1], -1, self.m)
        kept = groups.sum(-1, dtype=torch.uint8 if self.m < 256 else torch.int64)
        return int(torch.count_nonzero(kept > self.n))

    def _require_divisible(self, tensor: Tensor) -> None:
        reason = self.obstacle(tuple(tensor.shape))
        if reason:
            raise CrepeError(f"pattern {self} does not fit a tensor of shape {tuple(tensor.shape)}: {reason}")


def parse_pattern(text: str) -> Pattern:
    """`unstructured`, `N:M` with 0 < N < M, `colblock:RxC`, `tap:G`, `channel`, `head`, `block`, `dense`, or
    alternatives for each tensor such as `dense+2:4+4:8`.

    Raises:
        UsageError: anything else.
    """
    if "+" in text or text.strip() == "dense":
        # The mixed patterns build on those of this file.
        from crepe.masks.mixed import parse_mixed

        return parse_mixed(text)
    if text.strip() in ("channel", "head", "block"):
        from crepe.masks.structured import Structured

        return Structured(text.strip())
    if text == "unstructured":
        return Unstructured()
    if text.startswith("colblock"):
        from crepe.masks.colblock import parse_colblock

        return parse_colblock(text)
    if text.startswith("tap"):
        from crepe.masks.taps import parse_taps

        return parse_taps(text)
    found = re.fullmatch(r"(\d+):(\d+)", text.strip())
    if not found:
        raise UsageError(
            f"unknown pattern {text!r}: use unstructured, N:M such as 2:4, colblock:RxC such as colblock:64x8, "
            "channel, head, block, or a choice such as dense+2:4"
        )
    n, m = int(found[1]), int(found[2])
    if not 0 < n < m:
        raise UsageError(f"impossible pattern {text!r}: N:M keeps N of M weights and needs 0 < N < M, such as 2:4")
    return NofM(n, m)
