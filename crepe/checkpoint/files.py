"""Writing files so that a kill or a full disk never leaves a half-written one behind."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from torch import Tensor

from crepe.errors import CrepeError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file beside `path` to write to, which takes its place when all went well: others see it whole, or not at all.

    The name is this process's own, so that several may write the same file.
    """
    fresh = path.with_name(f"{path.name}.{os.getpid()}.new")
    try:
        yield fresh
        os.replace(fresh, path)
    finally:
        fresh.unlink(missing_ok=True)


def readable_as_usual(folder: Path) -> None:
    """Give the weights in `folder` the mode of a new file, where the disk knows modes: safetensors lets nobody else
    read what it wrote."""
    probe = folder / ".mode"
    probe.touch()
    mode = probe.stat().st_mode
    probe.unlink()
    for file in folder.glob("*.safetensors"):
        with suppress(OSError):
            file.chmod(mode)


def save_tensors(path: Path, tensors: dict[str, Tensor]) -> int:
    """Write a safetensors file under a temporary name, flush it, rename it; returns its size in bytes."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    temporary = path.with_name(path.name + ".new")
    try:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary, {"format": "pt"})
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        temporary.unlink(missing_ok=True)
        raise CrepeError(f"cannot write {path}: {error}; free some space and go on with --resume") from error
    return path.stat().st_size
