"""`crepe bench --kernels`: every operation over the shapes of real models, beside dense products and the floor."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch

from crepe.errors import UsageError
from crepe.eval.bench import machine
from crepe.eval.timing import Timing
from crepe.progress import bar

if TYPE_CHECKING:
    from crepe.kernels.bench.base import Case, Way

DTYPE = torch.bfloat16
# Copies of the operands that are walked through, so that none is found in the L2 cache.
_L2_TIMES = 3
_MOST_COPIES = 64
_REPLAYS = 20


def bench_kernels(only: Sequence[str] = ("*",), device: str = "auto") -> dict[str, Any]:
    """Time every case whose "operation label tokens" matches one of the globs in `only`.

    Times are medians of CUDA graph replays over copies that together exceed the L2 cache. The floor of a way is the
    longer of its bytes at the bandwidth, and its operations at the rate, that this device reached in the same run.

    Returns:
        `machine` (with bandwidth and rate), `cases` (microseconds of each way with the quartiles of the replays, its
        floor, and times faster than each baseline) and `not_measured` (what could not run, with the reason). Without
        a GPU nothing is timed.
    """
    from crepe.models.load import parse_device

    place = parse_device(device)
    chosen = [case for case in _cases() if any(fnmatch.fnmatch(_title(case), glob) for glob in only)]
    if not chosen:
        raise UsageError(f'--only {",".join(only)} matches no case: they are called "operation label tokens"')
    if place.type != "cuda":
        reason = f"{len(chosen)} cases: kernels are timed on a GPU, and this is {place.type}"
        return {"machine": machine(place), "cases": [], "not_measured": [reason]}
    measured = []
    with torch.cuda.device(place), bar("measuring", len(chosen)) as advance:
        limits = {"bytes_per_second": bandwidth(place), "flops_per_second": arithmetic(place)}
        for case in chosen:
            measured.append(measure(case, place, limits))
            advance()
    return {"machine": machine(place) | limits, "cases": measured, "not_measured": list(_refused(chosen, measured))}


def _refused(cases: Sequence[Case], measured: Sequence[dict[str, Any]]) -> Iterator[str]:
    for case, found in zip(cases, measured, strict=True):
        for way, why in found["refused"].items():
            yield f"{_title(case)}: {way}, {why}"


def _cases() -> Iterator[Case]:
    from crepe.kernels.bench.base import BENCHES

    for name in BENCHES.names():
        yield from BENCHES.get(name)()


def _title(case: Case) -> str:
    return f"{case.operation} {case.label} {case.shape[0]}"


def measure(case: Case, place: torch.device, limits: dict[str, float]) -> dict[str, Any]:
    """Microseconds of every way to compute one case."""
    ways: dict[str, Any] = {}
    refused: dict[str, str] = {}
    for way in case.ways:
        operands = way.make(place, DTYPE, 0)
        reason = way.obstacle(*operands)
        if reason:
            refused[way.name] = reason
            continue
        del operands
        try:
            timing = graph_timing(way, operands_of(way, place))
        except Exception as error:  # one way that fails must not cost what was measured before
            refused[way.name] = reason_of(error)
            continue
        ways[way.name] = microseconds(timing) | {"floor_us": 1e6 * floor(way, limits), "baseline": way.baseline}
    return {
        "operation": case.operation,
        "label": case.label,
        "shape": list(case.shape),
        "ways": ways,
        "refused": refused,
        "times_faster": faster(ways),
    }


def reason_of(error: Exception) -> str:
    """The kind of an error and the first line of what it says."""
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"


def microseconds(timing: Timing) -> dict[str, float]:
    """Median and quartiles of a timing."""
    low, high = timing.quartiles
    return {"us": 1e6 * timing.median, "us_low": 1e6 * low, "us_high": 1e6 * high}


def floor(way: Way, limits: dict[str, float]) -> float:
    """Seconds that no implementation of this way can beat on a device with these limits."""
    return max(way.bytes / limits["bytes_per_second"], way.flops / limits["flops_per_second"])


def faster(ways: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Way -> baseline -> how many times faster the way is."""
    baselines = {name: found for name, found in ways.items() if found["baseline"]}
    return {
        name: {other: found["us"] and base["us"] / found["us"] for other, base in baselines.items()}
        for name, found in ways.items()
        if not found["baseline"]
    }


def copies(bytes_each: int, cache: int) -> int:
    """How many copies of the operands exceed the cache several times over."""
    return max(2, min(_MOST_COPIES, -(-_L2_TIMES * cache // max(bytes_each, 1))))


def operands_of(way: Way, place: torch.device) -> list[tuple[Any, ...]]:
    """Copies of the arguments which together exceed the L2 cache."""
    count = copies(way.bytes, torch.cuda.get_device_properties(place).L2_cache_size)
    return [way.make(place, DTYPE, seed) for seed in range(count)]


def graph_timing(way: Way, operands: Sequence[tuple[Any, ...]]) -> Timing:
    """Seconds of one product, replay by replay."""

    def run_all() -> None:
        for one in operands:
            way.run(*one)

    return Timing(tuple(seconds / len(operands) for seconds in _replayed(run_all).seconds))


def _replayed(run: Callable[[], None]) -> Timing:
    """Seconds of every replay of `run` recorded as a CUDA graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run()
        run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    graph.replay()
    events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(_REPLAYS)]
    for start, end in events:
        start.record()
        graph.replay()
        end.record()
    torch.cuda.synchronize()
    return Timing(tuple(start.elapsed_time(end) / 1e3 for start, end in events))


def bandwidth(place: torch.device) -> float:
    """Bytes per second of reading and writing 1 GiB in a kernel; the copy engine, which `copy_` takes, is slower."""
    source = torch.zeros(1 << 28, dtype=torch.float32, device=place)
    target = torch.empty_like(source)
    return 2 * source.nbytes / _replayed(lambda: _discard(torch.neg(source, out=target))).median


def arithmetic(place: torch.device) -> float:
    """Floating-point operations per second of a dense product of 8192 cubed."""
    side = 8192
    left, right = (torch.randn(side, side, dtype=DTYPE, device=place) for _ in range(2))
    return 2 * side**3 / _replayed(lambda: _discard(left @ right)).median


def _discard(result: object) -> None:
    pass
