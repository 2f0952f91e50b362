"""A GPU for Triton that only writes down what it is asked to launch: everything up to the launch is real."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from crepe.kernels.dispatch import interpreting

# Binaries are kept by the number of the device: not one that is there.
DEVICE = 99


class FakeGPU:
    """launched: (grid, arguments) of every launch, the arguments as Triton's launcher gets them: stream, function (the
    hash of the binary), what Triton knows of it, hooks, and those of the kernel."""

    def __init__(self, recording: bool = True) -> None:
        self.launched: list[tuple[tuple[int, ...], tuple[Any, ...]]] = []
        self.recording = recording
        self.utils = self

    def launcher_cls(self, source: Any, metadata: Any) -> Any:
        """Kernels stay compiled and meet the fake of the day."""
        return lambda *arguments: driver.active.launch(*arguments)

    def launch(self, x: int, y: int, z: int, *arguments: Any) -> None:
        if self.recording:
            self.launched.append(((x, y, z), arguments))

    def load_binary(self, name: str, binary: bytes, shared: int, device: int) -> tuple[int, ...]:
        return 0, hash(binary), 0, 0, 1024

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": 227 << 10}

    def get_current_device(self) -> int:
        return DEVICE

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)


@contextmanager
def fake_gpu(recording: bool = True) -> Iterator[FakeGPU]:
    """Launches go to the fake inside. Kernels that were launched there stay compiled for it, plans do not."""
    from crepe.kernels.triton import configs

    if interpreting():
        pytest.skip("triton is interpreting in this process")
    fake, before = FakeGPU(recording), driver._active
    configs.forget()
    driver.set_active(fake)
    try:
        yield fake
    finally:
        driver._active = before
        configs.forget()
