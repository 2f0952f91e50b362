"""Sizes of tiles, warps and stages for every kernel: a table by device, tokens and outputs instead of trials.

Trials would compile and time kernels inside of a user's first forward, and break recorded graphs. The rows below were
timed on an H200 (`tests/measure/tune.py`), or chosen by instruction counts, registers and shared memory where a comment
says so. A row for another device goes before them with that device's name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from types import MappingProxyType
from typing import Any, NamedTuple, ParamSpec

import torch

_ANY = 1 << 31
# Sizes for which a kernel remembers its constants.
_MOST_PLANNED = 4096


@dataclass(frozen=True)
class Config:
    """tiles: the sizes that the kernel takes as constants. shared: bytes of shared memory that a block needs.
    registers: what a thread may use, so that more warps fit; 0 leaves it to the compiler."""

    tiles: Mapping[str, int]
    warps: int
    stages: int = 1
    shared: int = 0
    registers: int = 0

    @property
    def options(self) -> dict[str, int]:
        """What Triton's compiler takes."""
        limit = {"maxnreg": self.registers} if self.registers else {}
        return {"num_warps": self.warps, "num_stages": self.stages} | limit


@dataclass(frozen=True)
class Device:
    """shared: bytes of shared memory that a block may use. early: whether a kernel may begin before the one before it
    has ended, as from compute capability 9.0 on."""

    name: str
    shared: int
    early: bool = False


HOPPER = Device("", 227 << 10, early=True)
# What torch does not tell is taken to be as little as on any card since Ampere.
_LEAST_SHARED = 99 << 10


@dataclass(frozen=True)
class Row:
    """A config and up to how many tokens and outputs it is meant for, on devices whose name contains `device`."""

    config: Config
    tokens: int = _ANY
    outputs: int = _ANY
    device: str = ""


def _mma(tokens: int, ahead: int, split: int, buffers: int = 1, wide: int = 1, registers: int = 0) -> Config:
    """Four warps, of which `split` share the inputs of one tile of rows: two were slower up to 32 tokens."""
    tiles = {"ROWS": 1, "TOKENS": tokens, "AHEAD": ahead, "SPLIT": split, "BUFFERS": buffers, "WIDE": wide}
    return Config(tiles, 4, shared=2 << 10, registers=registers)


TABLES: dict[str, tuple[Row, ...]] = {
    # Three tokens with four rows spill registers.
    "sp24_matvec": (
        Row(Config({"ROWS": 1, "WORDS": 128}, 1), outputs=2048),
        Row(Config({"ROWS": 2, "WORDS": 64}, 1), tokens=1),
        Row(Config({"ROWS": 2, "WORDS": 128}, 1)),
    ),
    # The fewer outputs, the more warps share the inputs of one, so that all multiprocessors have work. With a limit of
    # registers three or four blocks fit instead of two or three, which is worth the few that spill. Timed at 4096,
    # 11008 and 22016 outputs; 16384 lies between.
    "sp24_mma": (
        Row(_mma(1, 4, 4, wide=2), tokens=8, outputs=8192),
        Row(_mma(1, 4, 2, buffers=2), tokens=8),
        Row(_mma(2, 4, 4, wide=2), tokens=16, outputs=8192),
        Row(_mma(2, 2, 2, buffers=2, wide=2, registers=168), tokens=16, outputs=16384),
        Row(_mma(2, 2, 1, buffers=2, wide=2, registers=168), tokens=16),
        Row(_mma(4, 4, 4), outputs=8192),
        Row(_mma(4, 1, 2, wide=2, registers=128)),
    ),
    # Few outputs: narrow tiles, so that all multiprocessors have work; the tokens are a second axis of the grid.
    "sp24_matmul": (
        Row(Config({"BN": 64, "BM": 32, "WORDS": 16}, 4, 3, 180 << 10), outputs=8192),
        Row(Config({"BN": 128, "BM": 64, "WORDS": 8}, 8, 2, 108 << 10)),
        # Not timed.
        Row(Config({"BN": 64, "BM": 32, "WORDS": 8}, 4, 2, 54 << 10)),
    ),
    # Timed alone, without others beside it.
    "sp24_unpack": (Row(Config({"WORDS": 128}, 1)),),
    # Few words, so that many warps fit.
    "prune_pack": (Row(Config({"ROWS": 1, "WORDS": 64}, 1)),),
    "colblock_matvec": (Row(Config({"ROWS": 2, "PIECES": 128}, 2, shared=2 << 10)),),
    # Activations wait for the numbers of their blocks, so that only every other stage is a buffer of theirs.
    "colblock_matmul": (
        Row(Config({"BN": 64, "BM": 16, "BK": 128}, 4, 6, 61 << 10), tokens=16),
        # Not timed, to 128 tokens.
        Row(Config({"BN": 64, "BM": 32, "BK": 64}, 4, 5, 37 << 10), tokens=32),
        Row(Config({"BN": 64, "BM": 64, "BK": 64}, 4, 4, 33 << 10), tokens=64),
        Row(Config({"BN": 64, "BM": 128, "BK": 64}, 4, 4, 49 << 10), tokens=128),
        Row(Config({"BN": 128, "BM": 256, "BK": 64}, 8, 5, 146 << 10)),
        Row(Config({"BN": 128, "BM": 128, "BK": 64}, 8, 3, 65 << 10)),
    ),
    "colblock_prefill": (
        Row(Config({"BN": 128, "BM": 256, "BK": 32}, 8, 9, 121 << 10), outputs=8192),
        Row(Config({"BN": 128, "BM": 256, "BK": 32}, 8, 5, 73 << 10)),
    ),
}


def find(kernel: str, device: Device, tokens: int, outputs: int) -> Config:
    """The first row of the kernel's table that fits this device and is meant for these sizes."""
    return next(
        row.config
        for row in TABLES[kernel]
        if row.device in device.name
        and row.config.shared <= device.shared
        and tokens <= row.tokens
        and outputs <= row.outputs
    )


class Plan(NamedTuple):
    """How one kernel runs for given sizes. ready: what `launch` keeps of it between calls."""

    constants: Mapping[str, Any]
    config: Config
    ready: dict[Any, Callable[..., Any]]


_P = ParamSpec("_P")
_PLANS: list[Any] = []


def planned(plan: Callable[_P, tuple[Mapping[str, Any], Config]]) -> Callable[_P, Plan]:
    """Remembers what a kernel's `plan` found for its arguments, which takes longer than launching; nobody can change
    it afterwards."""

    @lru_cache(_MOST_PLANNED)
    def found(*args: _P.args, **named: _P.kwargs) -> Plan:
        constants, config = plan(*args, **named)
        return Plan(MappingProxyType(dict(constants)), config, {})

    _PLANS.append(found)
    return found


def forget() -> None:
    """After a change of TABLES: what was planned by the old rows is planned anew."""
    for plan in _PLANS:
        plan.cache_clear()


@cache
def device_of(place: torch.device) -> Device:
    """What a GPU offers; without one, what a Hopper would."""
    if place.type != "cuda":
        return HOPPER
    properties = torch.cuda.get_device_properties(place)
    shared = getattr(properties, "shared_memory_per_block_optin", _LEAST_SHARED)
    return Device(properties.name, shared, early=properties.major >= 9)


def power_of_two(size: int) -> int:
    """The smallest power of two that is no smaller than `size`."""
    return 1 << (size - 1).bit_length()
