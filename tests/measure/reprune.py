"""Seconds that REPrune's selection takes for the layers of ResNet-50, with random weights of its shapes.

    OMP_NUM_THREADS=1 python tests/measure/reprune.py [--keep 0.5] [--workers 1] [--every]

Without --every: the two convolutions of each bottleneck that the method prunes. With it also the last convolution of
each bottleneck, the shortcuts and the first convolution, which it leaves alone.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator

import torch

STAGES = ((64, 3), (128, 4), (256, 6), (512, 3))


def shapes(every: bool) -> Iterator[tuple[int, int, int, int]]:
    """(out, in, kh, kw) of the convolutions, in the order of the network."""
    if every:
        yield 64, 3, 7, 7
    inputs = 64
    for width, blocks in STAGES:
        for block in range(blocks):
            yield width, inputs, 1, 1
            yield width, width, 3, 3
            if every:
                yield 4 * width, width, 1, 1
            if every and not block:
                yield 4 * width, inputs, 1, 1
            inputs = 4 * width


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--keep", type=float, default=0.5)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--every", action="store_true")
    given = parser.parse_args()

    from crepe.vision.coverage import cover
    from crepe.vision.ward import kernel_clusters

    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(shape, generator=generator) for shape in shapes(given.every)]
    spent = {"clusters": 0.0, "coverage": 0.0}
    wall, processor = time.perf_counter(), time.process_time()
    for weight in weights:
        keep = int(len(weight) * given.keep)
        start = time.process_time()
        clusters = kernel_clusters(weight, keep, workers=given.workers)
        middle = time.process_time()
        cover(clusters, keep, weight.flatten(1).norm(dim=1))
        spent["clusters"] += middle - start
        spent["coverage"] += time.process_time() - middle
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    parts = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in spent.items())
    print(f"{len(weights)} layers, {given.workers} threads: {wall:.1f} s; of a processor {processor:.1f} s ({parts})")


if __name__ == "__main__":
    main()
