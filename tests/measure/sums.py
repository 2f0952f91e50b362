"""How far the sums of a GPU (float64, rounded once) lie from those of the CPU (float32), and what that does to masks.

    python tests/measure/sums.py [--outputs 4096] [--inputs 4096]

RIA on a random bfloat16 matrix, no GPU needed: both definitions are computed here. Prints the largest relative
difference of a row and of a column sum, and how many entries of each mask differ.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor

from crepe.criteria import sums
from crepe.criteria.ria import EXPONENT, reciprocal
from crepe.kernels.reference.selection import score_of
from crepe.kernels.reference.sums import absolute_sums
from crepe.masks import parse_pattern
from crepe.masks.pattern import Compare

PATTERNS: tuple[tuple[str, Compare], ...] = (("2:4", "tensor"), ("unstructured", "row"), ("unstructured", "tensor"))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--outputs", type=int, default=4096)
    parser.add_argument("--inputs", type=int, default=4096)
    given = parser.parse_args()
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(given.outputs, given.inputs, generator=generator).bfloat16()
    norm = torch.rand(given.inputs, generator=generator) + 0.1
    pairs = zip(sums.absolute_sums(weight), absolute_sums(weight), strict=True)
    differences = [float(((one - other).abs() / other).max()) for one, other in pairs]
    print(f"largest relative difference: rows {differences[0]:.1e}, columns {differences[1]:.1e}")
    scores = [_ria(weight, norm, *found) for found in (sums.absolute_sums(weight), absolute_sums(weight))]
    for name, compare in PATTERNS:
        pattern = parse_pattern(name)
        one, other = (pattern.select(score, 0.5, compare) for score in scores)
        print(f"{name}, compared by {compare}: {int((one != other).sum())} of {weight.numel()} entries differ")


def _ria(weight: Tensor, norm: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    return score_of(weight, norm.pow(EXPONENT), reciprocal(rows), reciprocal(columns))


if __name__ == "__main__":
    main()
