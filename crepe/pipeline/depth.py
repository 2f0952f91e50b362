"""The run that removes whole blocks: one look at the dense model says which change their input least."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from crepe.checkpoint.blocks import block_files
from crepe.checkpoint.sliced import Slices, slice_config
from crepe.errors import CrepeError, UsageError
from crepe.masks import Mask, kept_count, select_largest
from crepe.models.blocks import Block
from crepe.pipeline import distributed
from crepe.pipeline.prune import TensorReport
from crepe.pipeline.refit import hidden_of
from crepe.pipeline.run import Runner, Sums
from crepe.pipeline.walk import Walk


class BlockRunner(Runner):
    """influence: of each block, by name; stays: whether it is kept. The weights of the model are not touched."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.influence: dict[str, float] = {}
        self.stays: dict[str, bool] = {}

    def prune(self, rows: Tensor | None, batch_size: int) -> dict[str, TensorReport]:
        assert rows is not None, "influence is measured on calibration rows"
        count = len(self.plan.blocks)
        keep = kept_count(count, self.choices.sparsity)
        if not 0 < keep < count and self.choices.sparsity:
            raise UsageError(
                f"sparsity {self.choices.sparsity:g} would remove {count - keep} of {count} blocks: "
                "at least one has to go and one to stay"
            )
        if not self.finished:
            batches = distributed.share(torch.split(rows.to(self.device), batch_size))
            self._each_block("influence", batches, self._look)
            values = torch.tensor([self.influence[block.name] for block in self.plan.blocks], dtype=torch.float64)
            kept = select_largest(values[None], keep)[0].tolist()
            self.stays = {block.name: stay for block, stay in zip(self.plan.blocks, kept, strict=True)}
            slice_config(self.model, self.plan.blocks, self.slices())
        self._each_block("writing", [], lambda i, block, walk: self._visit(i, block, walk, {}, None))
        return self.reports

    def _look(self, index: int, block: Block, walk: Walk) -> None:
        sums = torch.zeros(2, dtype=torch.float64, device=self.device)
        inputs = [hidden_input(call.args, call.kwargs) for call in walk.calls(block)]
        for before, output in zip(inputs, walk.advancing(block), strict=True):
            sums += torch.stack(cosine_sum(before, hidden_of(output)))
        total, tokens = distributed.over_ranks(sums).tolist()
        self.influence[block.name] = 1 - total / tokens

    def _visit(self, index: int, block: Block, walk: Walk, sparsities: Mapping[str, float], known: Sums | None) -> None:
        done = self.journal.lines.get(block.name) if self.journal else None
        if done is not None:
            self.stays[block.name], self.influence[block.name] = done["stays"], done["influence"]
        reports = {v.name: self._report(block, v.shape) for v in self.plan.inventories[index].views}
        if done is None:
            self._record(index, block, reports, {})
        self.reports |= reports
        self.units[block.name] = self._more(block)

    def _report(self, block: Block, shape: tuple[int, int]) -> TensorReport:
        """A matrix goes with its block or stays as it is."""
        total, gone = shape[0] * shape[1], not self.stays[block.name]
        return TensorReport(shape, "block", total if gone else 0, total, float(gone), 0)

    def _files(self, index: int, block: Block, masks: dict[str, Mask]) -> dict[str, dict[str, Tensor]]:
        return block_files(self.model, index, block, {}) if self.stays[block.name] else {}

    def _more(self, block: Block) -> dict[str, Any]:
        return {"stays": self.stays[block.name], "influence": self.influence[block.name]}

    def slices(self) -> Slices:
        return Slices(stays=self.stays)


def cosine_sum(before: Tensor, after: Tensor) -> tuple[Tensor, Tensor]:
    """(sum over tokens of cos(x, y), number of tokens), scalars in float64.

    Block influence is 1 - its mean: 1 - E[x^T y / (|x| |y|)] for the hidden states x before and y after a block (Men
    et al. 2024, ShortGPT, arXiv 2403.03853, eq. 1). before, after: (..., tokens, hidden).
    """
    cosines = torch.nn.functional.cosine_similarity(before.double(), after.double(), dim=-1)
    return cosines.sum(), torch.tensor(float(cosines.numel()), dtype=torch.float64, device=cosines.device)


def hidden_input(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    """The hidden states that a block is called with: its first argument, or the first by name that could be them."""
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor) and value.is_floating_point() and value.dim() >= 3:
            return value
    raise CrepeError("a block is called without hidden states (batch, tokens, hidden): its influence is unknown")
