"""What blocks return beside their hidden states counts only where somebody reads it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from crepe.models.blocks import Block, find_blocks
from crepe.models.probe import real_tensors
from crepe.pipeline.unread import STREAMS, Unread, without_extras
from crepe.pipeline.walk import Walk
from families import tiny_model

ROWS = torch.randint(3, 128, (1, 12), generator=torch.Generator().manual_seed(0))


class _Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: Tensor, given: Tensor | None) -> tuple[Tensor, Tensor]:
        y = self.linear(x)
        return y, y.transpose(-1, -2) @ y


class _Model(nn.Module):
    """reads: whether the layer of this number is given what the one before returned beside its output."""

    def __init__(self, reads: int | None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.reads = nn.Embedding(128, 8), reads
        self.layers = nn.ModuleList(_Layer() for _ in range(3))

    def forward(self, input_ids: Tensor, use_cache: bool) -> Tensor:
        x, extra = self.embedding(input_ids), None
        for number, layer in enumerate(self.layers):
            x, extra = layer(x, extra if number == self.reads else None)
        return x


def _looked_at(model: Any, blocks: list[Block]) -> tuple[Unread, list[int]]:
    """How many tensors of each block's output an experiment would look at."""
    walk, unread, counts = Walk(model, blocks, [ROWS], STREAMS), Unread(), []
    with walk.started():
        for block in blocks:
            output, _ = unread.run_once(block, walk)()  # type: ignore[misc]
            counts.append(len(real_tensors(output)))
            if not walk.is_last(block):
                walk.advance(block)
    return unread, counts


@pytest.mark.parametrize(("reads", "counts", "ignored"), [(None, [1, 1, 1], 3), (1, [2, 2, 2], 0), (2, [1, 2, 2], 1)])
def test_what_somebody_reads_counts_from_there_on(reads: int | None, counts: list[int], ignored: int) -> None:
    model = _Model(reads)
    unread, found = _looked_at(model, [Block(f"layers.{i}", layer) for i, layer in enumerate(model.layers)])
    assert found == counts and unread.read == (reads is not None) and len(unread.ignored) == ignored


def test_one_block_alone_shows_nothing() -> None:
    model = _Model(None)
    assert _looked_at(model, [Block("layers.2", model.layers[2])])[1] == [2]


def test_attention_weights_that_are_returned_are_not_read() -> None:
    model = tiny_model("gptj")
    unread, counts = _looked_at(model, find_blocks(model))
    assert counts == [1, 1, 1] and not unread.read


def test_only_tensors_of_another_shape_are_extras() -> None:
    hidden, extra, number = torch.zeros(1, 2, 3), torch.zeros(1, 4, 2, 2), torch.zeros(1, dtype=torch.int64)
    kept = without_extras((hidden, extra, {"cache": extra}, [number, None, hidden]))
    assert kept[0] is hidden and kept[1] is None and kept[3][2] is hidden and kept[3][0] is number
