"""Several processes under `accelerate launch`: statistics are sums, so they add over ranks. No engine of our own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor

from crepe.calibration.statistics import ChannelSums

T = TypeVar("T")


def world_size() -> int:
    return torch.distributed.get_world_size() if _started() else 1


def rank() -> int:
    return torch.distributed.get_rank() if _started() else 0


def is_main() -> bool:
    return rank() == 0


def start() -> None:
    """Join the process group that `accelerate launch` set up; nothing where there is only one process."""
    import os

    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        from accelerate import PartialState

        PartialState(cpu=not torch.accelerator.is_available())


def share(batches: Sequence[T]) -> list[T]:
    """The batches of this rank: whole batches, so that every one is computed as it would be by one process."""
    if not _started():
        return list(batches)
    return list(batches[rank() :: world_size()])


def add_up(sums: dict[str, ChannelSums]) -> dict[str, ChannelSums]:
    """Sums over all ranks, the same bytes on every rank."""
    if not _started():
        return sums
    for found in sums.values():
        for name in found.present:
            setattr(found, name, _over_ranks(getattr(found, name)))
        found.tokens = int(_over_ranks(torch.tensor(float(found.tokens), dtype=torch.float64)))
    return sums


def over_ranks(tensor: Tensor) -> Tensor:
    """The sum of what every rank has, the same bytes on every rank."""
    return _over_ranks(tensor) if _started() else tensor


def _over_ranks(tensor: Tensor) -> Tensor:
    shared = tensor.to(_device())
    torch.distributed.all_reduce(shared)
    torch.distributed.broadcast(shared, 0)
    return shared.to(tensor.device)


def from_main(value: T | None) -> T:
    """What rank 0 has, on every rank."""
    if not _started():
        return value  # type: ignore[return-value]
    box = [value]
    torch.distributed.broadcast_object_list(box, 0)
    return box[0]  # type: ignore[return-value]


def wait() -> None:
    if _started():
        torch.distributed.barrier()


def _started() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _device() -> torch.device:
    return torch.device("cuda") if torch.distributed.get_backend() == "nccl" else torch.device("cpu")
