"""What tests of kernels on a GPU share."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")


def replayed(layer: Callable[[Tensor], Tensor], x: Tensor, other: Tensor) -> Tensor:
    """Record `layer(x)` as a CUDA graph, write `other` into x, and return what a replay computes."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        layer(x)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = layer(x)
    x.copy_(other)
    graph.replay()
    torch.cuda.synchronize()
    return found
