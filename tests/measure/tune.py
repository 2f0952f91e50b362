"""Tiles, warps and stages of the product kernels, timed on this GPU: where rows of kernels/triton/configs.py come from.

    python tests/measure/tune.py [--only "sp24_matvec*"] [--folder DIR] [--processes N]

Every candidate of every kernel is compiled first, in several processes, because compiling takes most of the time; then
each is timed like `crepe bench --kernels` times (graph replays over copies larger than the L2 cache), one after the
other. Writes tune.jsonl into DIR, a line for each candidate, and prints the fastest of each shape beside what the
table holds now and beside cuBLAS. What does not fit on the device is written down with the reason.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import multiprocessing
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch

from crepe.eval.bench_kernels import DTYPE, graph_timing, microseconds, operands_of, reason_of
from crepe.kernels.bench import colblock_linear, prune_pack, sp24_linear
from crepe.kernels.bench.base import Way
from crepe.kernels.triton import configs
from crepe.kernels.triton.configs import Config, Row

WIDE, SQUARE, DEEP, NARROW = (22016, 4096), (4096, 4096), (4096, 11008), (1024, 4096)
FUSED, LARGE, SMALL, HALF = (12288, 4096), (57344, 8192), (2048, 2048), (11008, 4096)


@dataclass(frozen=True)
class Trial:
    """A kernel at (tokens, outputs, inputs), in a layout of column blocks or of 2:4, with a config to try."""

    kernel: str
    shape: tuple[int, int, int]
    config: Config | None
    blocks: tuple[int, int] = (0, 0)

    @property
    def title(self) -> str:
        blocks = " {}x{}".format(*self.blocks) if self.blocks[0] else ""
        return f"{self.kernel} {' x '.join(map(str, self.shape))}{blocks}"

    def ways(self) -> Iterator[Way]:
        if self.kernel == "prune_pack":
            return iter(prune_pack.whole_model().ways)
        if self.blocks[0]:
            return colblock_linear.ways(self.shape, *self.blocks)
        return sp24_linear.ways(self.shape)

    def way(self) -> Way:
        if self.kernel == "prune_pack":
            name = "triton" if self.config else "copy"
        else:
            name = self.kernel.split("_")[1] if self.config else "F.linear"
        return next(way for way in self.ways() if way.name == name)


def _configs(names: tuple[str, ...], *sizes: tuple[int, ...]) -> Iterator[Config]:
    """Configs from (tile sizes..., warps, stages)."""
    for *tiles, warps, stages in sizes:
        yield Config(dict(zip(names, tiles, strict=True)), warps, stages)


def _matvec(outputs: tuple[tuple[int, int], ...]) -> Iterator[Trial]:
    sizes = [
        *product((1, 2, 4, 8), (128,), (1,), (1,)), *product((2, 4), (64,), (1,), (1,)),
        *product((1, 2, 4), (256,), (2,), (1,)), *product((2, 4), (128,), (2,), (1,)),
        *product((1, 2), (512,), (4,), (1,)),
    ]  # fmt: skip
    for (wide, deep), config in product(outputs, _configs(("ROWS", "WORDS"), *sizes)):
        yield Trial("sp24_matvec", (1, wide, deep), config)
    for tokens, (wide, deep), config in product((2, 3), (SQUARE, WIDE), _configs(("ROWS", "WORDS"), *sizes)):
        if config.tiles["ROWS"] < 8:
            yield Trial("sp24_matvec", (tokens, wide, deep), config)


def _matmul() -> Iterator[Trial]:
    few = [
        *product((32,), (16,), (8, 16, 32), (2,), (2, 3, 4)), *product((64,), (16,), (8, 16, 32), (4,), (2, 3, 4)),
        (64, 16, 16, 8, 3), (128, 16, 8, 4, 3), (128, 16, 16, 8, 3), (16, 16, 32, 1, 3), (16, 16, 32, 2, 3),
    ]  # fmt: skip
    for (wide, deep), config in product((SQUARE, WIDE, DEEP), _configs(("BN", "BM", "WORDS"), *few)):
        yield Trial("sp24_matmul", (16, wide, deep), config)
    many = [
        *product((64,), (32, 64), (8, 16), (4,), (2, 3)),
        (128, 32, 8, 8, 2),
        (128, 64, 8, 8, 2),
        (32, 64, 16, 2, 2),
    ]
    for tokens, (wide, deep), config in product((32, 64), (SQUARE, WIDE), _configs(("BN", "BM", "WORDS"), *many)):
        yield Trial("sp24_matmul", (tokens, wide, deep), config)


def _blocks() -> Iterator[Trial]:
    sizes = [*product((1, 2, 4, 8), (64,), (1,), (1,)), *product((2, 4), (32,), (1,), (1,)),
             *product((1, 2, 4), (128,), (2,), (1,)), *product((2, 4), (128,), (1,), (1,))]  # fmt: skip
    for (wide, deep), config in product((SQUARE, WIDE, DEEP), _configs(("ROWS", "PIECES"), *sizes)):
        yield Trial("colblock_matvec", (1, wide, deep), config, (64, 8))
    few = [*product((32, 64), (16,), (64, 128), (2, 4), (4, 6))]
    for (wide, deep), config in product((SQUARE, WIDE), _configs(("BN", "BM", "BK"), *few)):
        yield Trial("colblock_matmul", (16, wide, deep), config, (64, 8))


# Of the sparse tensor cores, by tokens: for up to 8192 outputs, and for more: rows, tiles of tokens, bit positions at
# once, warps that share the inputs, buffers of weights, neighbouring blocks at once, warps, and registers of a thread,
# 0 for any number.
_MMA = {
    8: (
        [
            (1, 1, 8, 4, 1, 1, 4, 0), (1, 1, 8, 4, 1, 1, 4, 128), (1, 1, 4, 4, 1, 2, 4, 128),
            (1, 1, 8, 8, 1, 1, 8, 128),
        ],
        [(1, 1, 4, 2, 2, 1, 4, 0), (1, 1, 4, 2, 2, 1, 2, 128), (1, 1, 2, 2, 2, 1, 4, 0)],
    ),
    16: (
        [
            (1, 2, 8, 4, 1, 1, 4, 0), (1, 2, 8, 4, 1, 1, 4, 128), (1, 2, 4, 4, 1, 2, 4, 128),
            (1, 2, 4, 4, 2, 1, 4, 128), (1, 2, 2, 4, 2, 2, 4, 0), (1, 2, 4, 8, 1, 1, 8, 0), (1, 2, 8, 8, 1, 1, 8, 128),
            (1, 1, 8, 4, 1, 1, 4, 128), (1, 1, 4, 4, 1, 2, 4, 128),
        ],
        [
            (1, 2, 4, 2, 2, 1, 4, 128), (1, 2, 4, 2, 2, 1, 2, 128), (1, 2, 2, 2, 2, 1, 4, 0),
            (1, 2, 2, 2, 2, 1, 4, 96), (1, 2, 2, 2, 2, 2, 4, 168), (1, 2, 2, 1, 2, 2, 4, 168),
            (1, 2, 2, 1, 2, 2, 4, 0), (1, 2, 4, 2, 1, 1, 4, 0), (1, 2, 8, 2, 1, 1, 4, 0), (1, 2, 1, 2, 2, 2, 4, 0),
            (2, 2, 2, 2, 1, 2, 4, 0), (2, 2, 4, 2, 1, 1, 4, 0),
        ],
    ),
    32: (
        [(1, 4, 2, 4, 1, 1, 4, 0), (1, 4, 2, 4, 1, 2, 4, 0), (1, 2, 4, 4, 1, 2, 4, 0)],
        [
            (1, 4, 1, 2, 1, 2, 4, 128), (1, 4, 2, 2, 1, 1, 4, 0), (2, 4, 2, 2, 1, 1, 4, 0), (2, 4, 2, 1, 1, 1, 4, 0),
        ],
    ),
    64: (
        [(2, 8, 1, 4, 1, 1, 4, 0), (2, 8, 1, 4, 1, 1, 8, 0)],
        [(2, 8, 1, 1, 1, 1, 4, 0), (1, 8, 1, 2, 1, 1, 4, 0), (2, 8, 1, 4, 1, 1, 8, 0)],
    ),
}  # fmt: skip


def _mma() -> Iterator[Trial]:
    names = ("ROWS", "TOKENS", "AHEAD", "SPLIT", "BUFFERS", "WIDE")
    for tokens, (wide, deep) in product((16, 8, 32, 64), (SQUARE, WIDE, DEEP, HALF)):
        for *tiles, warps, registers in _MMA[tokens][wide > 8192]:
            config = Config(dict(zip(names, tiles, strict=True)), warps, registers=registers)
            yield Trial("sp24_mma", (tokens, wide, deep), config)


def _prefill() -> Iterator[Trial]:
    # Activations wait for the numbers of their blocks, so that only every other stage is a buffer of theirs.
    sizes = [
        *product((128,), (256,), (32,), (8,), (5, 7, 9)), *product((128,), (128,), (32,), (8,), (7, 9)),
        *product((128,), (128, 256), (64,), (8,), (5, 7)), (128, 128, 64, 8, 3),
        *product((64,), (256,), (32,), (4, 8), (7, 9)), *product((64,), (256,), (64,), (4, 8), (5, 7)),
    ]  # fmt: skip
    for shape, config in product((SQUARE, WIDE), _configs(("BN", "BM", "BK"), *sizes)):
        for kernel, blocks in product(("colblock_prefill", "colblock_matmul"), ((64, 8), (128, 16))):
            if config.tiles["BN"] == blocks[0]:
                yield Trial(kernel, (2048, *shape), config, blocks)


def _prune_pack() -> Iterator[Trial]:
    sizes = [*product((1, 2, 4, 8), (64,), (1,), (1,)), *product((2, 4, 8), (128,), (2,), (1,)), (4, 32, 1, 1),
             (4, 128, 1, 1), (4, 128, 4, 1), (16, 64, 1, 1)]  # fmt: skip
    for config in _configs(("ROWS", "WORDS"), *sizes):
        yield Trial("prune_pack", (0, 4096, 4096), config)


def trials() -> list[Trial]:
    """Every candidate."""
    return [
        *_matvec((SQUARE, WIDE, DEEP, NARROW, FUSED, LARGE, SMALL)),
        *_matmul(),
        *_mma(),
        *_blocks(),
        *_prefill(),
        *_prune_pack(),
    ]


def _use(trial: Trial) -> None:
    if trial.config:
        configs.TABLES[trial.kernel] = (Row(trial.config),)
        configs.forget()


def _compile(trial: Trial) -> str | None:
    """Run once, so that the machine code lies in Triton's cache; the reason where that fails."""
    _use(trial)
    way, place = trial.way(), torch.device("cuda")
    try:
        way.run(*way.make(place, DTYPE, 0))
        torch.cuda.synchronize()
    except Exception as error:
        return reason_of(error)
    return None


def _time(trial: Trial, operands: list[tuple[Any, ...]]) -> dict[str, float]:
    _use(trial)
    return microseconds(graph_timing(trial.way(), operands))


def _line(trial: Trial, found: dict[str, Any]) -> dict[str, Any]:
    about = {"title": trial.title, "kernel": trial.kernel, "shape": trial.shape, "blocks": trial.blocks}
    chosen = trial.config
    return {**about, "config": chosen and [*chosen.tiles.values(), *chosen.options.values()], **found}


def _grouped(only: str) -> dict[str, list[Trial]]:
    """The candidates of every shape, behind what the table holds now for it."""
    groups: dict[str, list[Trial]] = {}
    for trial in trials():
        if any(fnmatch.fnmatch(trial.title, glob) for glob in only.split(",")):
            groups.setdefault(trial.title, []).append(trial)
    device = configs.device_of(torch.device("cuda", 0))
    for group in groups.values():
        one = group[0]
        now = configs.find(one.kernel, device, *one.shape[:2])
        group.insert(0, replace(one, config=now))
    return groups


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", default="*")
    parser.add_argument("--folder", default=".")
    parser.add_argument("--processes", type=int, default=14)
    parser.add_argument("--compile-only", action="store_true", help="fill Triton's cache, time nothing")
    given = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("kernels are timed on a GPU, and there is none")
    groups = _grouped(given.only)
    every = [trial for group in groups.values() for trial in group]
    with multiprocessing.get_context("spawn").Pool(given.processes) as pool:
        reasons = iter(pool.map(_compile, every, chunksize=1))
    if given.compile_only:
        return
    with open(Path(given.folder) / "tune.jsonl", "a") as lines:
        for title, group in groups.items():
            _measure(title, [(trial, next(reasons)) for trial in group], partial(print, file=lines, flush=True))


def _measure(title: str, group: list[tuple[Trial, str | None]], write: Any) -> None:
    first, place = group[0][0], torch.device("cuda", 0)
    plain = replace(first, config=None)
    dense = _time(plain, operands_of(plain.way(), place))
    write(json.dumps(_line(plain, dense)))
    operands = operands_of(first.way(), place)
    times = {}
    for number, (trial, reason) in enumerate(group):
        found = {"refused": reason} if reason else _time(trial, operands)
        write(json.dumps(_line(trial, found)))
        if not reason:
            times[number] = found["us"]
    best = min(times, key=lambda number: times[number])
    now, us = times.get(0, float("nan")), dense["us"]
    print(f"{title:42} dense {us:7.1f}, now {now:6.1f}, best {times[best]:6.1f} us, {us / times[best]:.2f} x,", end=" ")
    print(_line(group[best][0], {})["config"], flush=True)


if __name__ == "__main__":
    main()
