"""Which layers of a packed model no kernel covers on its GPU: torch unpacks their weights for every product."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor, nn

from crepe.checkpoint.layouts import Layout, Tensors
from crepe.checkpoint.modules import PackedLinear

# Decoding, a batch of prompts, reading a prompt: kernels are chosen by the number of tokens.
_TOKENS = (1, 16, 2048)


@dataclass(frozen=True)
class Layer:
    """A packed layer as the kernels see it; only devices, dtypes and shapes of the tensors matter."""

    name: str
    layout: Layout
    tensors: Tensors
    bias: Tensor | None = None


@dataclass(frozen=True)
class Fallback:
    """A layer that torch computes. shape: (out, in); reason: why no kernel does."""

    name: str
    shape: tuple[int, int]
    reason: str


def packed_layers(model: nn.Module) -> list[Layer]:
    return [
        Layer(name, module.layout, module.packed, module.bias)
        for name, module in model.named_modules()
        if isinstance(module, PackedLinear)
    ]


def fallbacks(layers: Iterable[Layer]) -> list[Fallback]:
    """The layers on a CUDA device that fall back to torch at some number of tokens. Elsewhere torch is what is meant
    to run, and none is listed."""
    found = []
    for layer in layers:
        reason = _reason(layer) if layer.tensors[""].is_cuda else None
        if reason is not None:
            found.append(Fallback(layer.name, layer.layout.matrix_shape, reason))
    return found


def _reason(layer: Layer) -> str | None:
    one = layer.tensors[""].new_empty(1, layer.layout.matrix_shape[1])
    reasons = (layer.layout.uncovered(one.expand(tokens, -1), layer.tensors, layer.bias) for tokens in _TOKENS)
    return next((reason for reason in reasons if reason is not None), None)


def describe(found: list[Fallback], layers: int) -> str:
    """One line for people. layers: how many packed ones there are."""
    first = found[0]
    return (
        f"{len(found)} of {layers} packed layers have no kernel here and are unpacked by torch for every product, such "
        f"as {first.name} ({first.shape[0]} x {first.shape[1]}): {first.reason}; model.dequantize() is faster"
    )


def warn_of_fallbacks(model: nn.Module) -> str | None:
    """Log one line where layers of `model` fall back; returns it."""
    layers = packed_layers(model)
    found = fallbacks(layers)
    if not found:
        return None
    line = describe(found, len(layers))
    logging.getLogger("crepe").warning(line)
    return line
