"""Output error of each matrix on the calibration inputs, from its (sketched) Gram matrix."""

from __future__ import annotations

import torch
from torch import Tensor

from crepe.criteria.coefficients import Coefficients
from crepe.search.proxies.base import PROXIES, Proxy, Score
from crepe.search.sampled import Stack
from crepe.search.sketches import sketch
from crepe.search.subject import Subject

ROWS = 8


def row_errors(weight: Tensor, mask: Tensor, sketches: Tensor) -> Tensor:
    """|| (W - W o M)_i X ||^2 of each row i, estimated from sketches of X.

    weight, mask: (L, r, in); sketches: (L, s, in). Returns (L, r).
    """
    return (weight.masked_fill(mask, 0.0) @ sketches.transpose(1, 2)).square().sum(-1)


def stack_sketches(stack: Stack, sketches: dict[str, Tensor]) -> Tensor:
    """(L, s, in) for the matrices of a stack."""
    return torch.stack([sketches[name] for name in stack.names])


def _prepare(subject: Subject) -> Score:
    found = sketch(subject.model, subject.plan.views, subject.rows[:ROWS], subject.seed).sketches
    sketches = [stack_sketches(stack, found) for stack in subject.sample.stacks]
    nothing = [torch.zeros_like(stack.weight, dtype=torch.bool) for stack in subject.sample.stacks]
    whole = [
        row_errors(stack.weight, none, s).sum(1)
        for stack, none, s in zip(subject.sample.stacks, nothing, sketches, strict=True)
    ]

    def score(coefficients: Coefficients) -> float:
        masks = subject.sample.masks(coefficients, subject.choices)
        parts = [
            row_errors(stack.weight, mask, s).sum(1)[all_ > 0] / all_[all_ > 0]
            for (stack, _, mask), s, all_ in zip(masks, sketches, whole, strict=True)
        ]
        # An expert that no token was routed to says nothing.
        return float(torch.cat(parts).mean())

    return score


PROXIES.add(
    "recon",
    Proxy(_prepare, "prepares sums and 8 forward rows; a trial scores, selects and multiplies the sampled rows"),
)
