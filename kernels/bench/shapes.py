"""Shapes of the linear layers of well-known models: data for measurements, known to nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

# Tokens of one step: decoding one or a few sequences, batches of them, prefill.
TOKENS = (1, 2, 4, 8, 16, 32, 64, 96, 128, 512, 2048, 8192)


@dataclass(frozen=True)
class Block:
    """Widths of one decoder block. key_value: outputs of the key projection, and of the value projection."""

    name: str
    hidden: int
    intermediate: int
    key_value: int

    def linears(self) -> Iterator[tuple[str, int, int]]:
        """(label, outputs, inputs) of its layers, fused first and then each for itself."""
        hidden, wide = self.hidden, self.intermediate
        yield f"{self.name} q+k+v", hidden + 2 * self.key_value, hidden
        yield f"{self.name} gate+up", 2 * wide, hidden
        yield f"{self.name} down", hidden, wide
        yield f"{self.name} q, o", hidden, hidden
        yield f"{self.name} gate, up", wide, hidden
        if self.key_value != hidden:
            yield f"{self.name} k, v", self.key_value, hidden


BLOCKS = (
    Block("Llama-2-7B", 4096, 11008, 4096),
    Block("Llama-3-8B", 4096, 14336, 1024),
    Block("Qwen2.5-7B", 3584, 18944, 512),
    Block("Llama-3.2-1B", 2048, 8192, 512),
    Block("Llama-2-70B", 8192, 28672, 1024),
)


def shapes() -> Iterator[tuple[str, tuple[int, int, int]]]:
    """(label, (tokens, outputs, inputs)) of every layer at every number of tokens."""
    for block in BLOCKS:
        for label, outputs, inputs in block.linears():
            for tokens in TOKENS:
                yield label, (tokens, outputs, inputs)
