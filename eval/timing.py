"""Timing side by side: every contestant once in every round, so that a machine's moods meet all of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median, quantiles

import torch


@dataclass(frozen=True)
class Timing:
    """Seconds of one thing, round by round."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return median(self.seconds)

    @property
    def quartiles(self) -> tuple[float, float]:
        """A quarter of the rounds took less than the first, a quarter more than the second."""
        if len(self.seconds) < 2:
            return self.median, self.median
        low, _, high = quantiles(self.seconds, n=4, method="inclusive")
        return low, high

    def rate(self, count: int) -> dict[str, float]:
        """`count` per second: median, and the slowest and fastest round."""
        return {"median": count / self.median, "low": count / max(self.seconds), "high": count / min(self.seconds)}


def side_by_side(
    contestants: Mapping[str, Callable[[], None]],
    rounds: int,
    device: torch.device,
    before: Mapping[str, Callable[[], None]] | None = None,
) -> dict[str, Timing]:
    """Time every contestant `rounds` times in turn, after a round that does not count.

    before: what each needs to run first every time, which is not timed.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(1 + rounds):
        for name, run in contestants.items():
            if before:
                before[name]()
            took = _timed(run, device)
            if number:
                seconds[name].append(took)
    return {name: Timing(tuple(found)) for name, found in seconds.items()}


def ratio(first: Timing, second: Timing) -> float:
    """How many times faster `second` is: the median of the ratios round by round."""
    return median(a / b for a, b in zip(first.seconds, second.seconds, strict=True))


def _timed(run: Callable[[], None], device: torch.device) -> float:
    synchronize(device)
    start = time.perf_counter()
    run()
    synchronize(device)
    return time.perf_counter() - start


def synchronize(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
