"""What Python takes for one packed layer, beside a dense one. Kernels are compiled and all but launched, so no GPU is
needed.

    PYTHONPATH=tests python tests/measure/overhead.py

Microseconds per call in inference, one thread, the best of many. What only a GPU asks for (the launch in C, its
allocator, the current device) comes on top. Plain `generate()` and short prompts wait for this time, recorded graphs do
not.
"""

from __future__ import annotations

import time

import torch
from torch import nn

from crepe.checkpoint.layouts import TwoOfFour
from crepe.checkpoint.modules import PackedLinear
from crepe.kernels.operations import tensors
from fake_gpu import fake_gpu

ROUNDS, CALLS = 15, 400


def as_on_a_gpu() -> None:
    """The dispatcher takes the kernels although the tensors are on the CPU."""
    tensors.triton_obstacle = lambda tensor: None  # type: ignore[assignment]
    tensors._gpu_obstacle = lambda device: None  # type: ignore[assignment]


def microseconds(layers: dict[str, nn.Module], x: torch.Tensor) -> dict[str, float]:
    found = dict.fromkeys(layers, float("inf"))
    for _ in range(ROUNDS):
        for name, layer in layers.items():
            start = time.perf_counter()
            for _ in range(CALLS):
                layer(x)
            found[name] = min(found[name], 1e6 * (time.perf_counter() - start) / CALLS)
    return found


def main() -> None:
    as_on_a_gpu()
    torch.set_num_threads(1)
    dense = nn.Linear(32, 8, bias=False).to(torch.bfloat16)
    layers = {"dense": dense, "packed": PackedLinear(TwoOfFour((8, 32)), dense)}
    for what, tokens in (("matrix-vector", 1), ("sparse tensor cores", 16), ("unpacked for the product", 128)):
        with fake_gpu(recording=False), torch.inference_mode():
            found = microseconds(layers, torch.randn(1, tokens, 32, dtype=torch.bfloat16))
        print(what, {name: round(value, 1) for name, value in found.items()}, flush=True)


if __name__ == "__main__":
    main()
