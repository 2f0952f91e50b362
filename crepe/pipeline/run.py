"""The walk of one run: collect statistics, prune, record, block by block."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from crepe.calibration.statistics import ChannelSums
from crepe.checkpoint.blocks import block_files, restore_block
from crepe.models.blocks import Block
from crepe.models.onload import onloaded, take_over
from crepe.pipeline import distributed
from crepe.pipeline.capture import InputRecorder
from crepe.pipeline.journal import Journal
from crepe.pipeline.plan import Plan
from crepe.pipeline.progress import bar
from crepe.pipeline.prune import TensorReport, prune_views, scores, statistics_of
from crepe.pipeline.walk import Walk
from crepe.recipe import Choices

Sums = Mapping[str, ChannelSums]


class Runner:
    """Prunes the blocks of one model. State only: what the run is made of, and what became of each tensor."""

    def __init__(self, model: Any, plan: Plan, choices: Choices, device: torch.device, journal: Journal | None) -> None:
        self.model = model
        self.plan = plan
        self.choices = choices
        self.device = device
        self.journal = journal
        self.sequential = choices.recipe.pipeline == "sequential"
        self.finished = journal is not None and all(block.name in journal.lines for block in plan.blocks)
        self.store = take_over(model, plan.blocks, device)
        self.reports: dict[str, TensorReport] = {}
        # Weights that came from disk can be read again; those of a model in memory are gone once they are pruned.
        self.in_memory = not any(parameter.is_meta for parameter in model.parameters())
        self.modified = False

    def prune(self, rows: Tensor | None, batch_size: int) -> dict[str, TensorReport]:
        """Prune every block, in order; reports by view name.

        rows: (samples, seqlen), None where the criterion needs no activations. Finished blocks of a resumed run are
        only passed through, so that the next one sees the same inputs.
        """
        batches = [] if rows is None else distributed.share(torch.split(rows.to(self.device), batch_size))
        if self.finished:
            batches = []
        if self.choices.compare == "global":
            self._prune_globally(batches)
        else:
            sparsities = self.choices.allocation(self.plan.shapes, self.choices.sparsity)
            self._each_block("pruning", batches, lambda i, block, walk: self._visit(i, block, walk, sparsities, None))
        return self.reports

    def _each_block(self, what: str, batches: list[Tensor], visit: Callable[[int, Block, Walk], None]) -> None:
        """Blocks one after the other, each in memory while it is the current one."""
        walk = Walk(self.model, self.plan.blocks, batches)
        with walk.started(), bar(what, len(self.plan.blocks)) as advance:
            for index, block in enumerate(self.plan.blocks):
                with onloaded(block, self.store, self.device):
                    visit(index, block, walk)
                advance()

    def _visit(self, index: int, block: Block, walk: Walk, sparsities: Mapping[str, float], known: Sums | None) -> None:
        done = self.journal.lines.get(block.name) if self.journal else None
        if done is not None:
            self._pass_through(index, block, walk, done)
            return
        views = self.plan.inventories[index].views
        sums = self._collect(index, block, walk) if known is None else known
        self.modified = self.in_memory
        reports, masks = prune_views(views, sums, sparsities, self.choices)
        if self.sequential and not walk.is_last(block):
            walk.advance(block)
        if self.journal is not None and distributed.is_main():
            files = block_files(self.model, index, block, masks if self.choices.recipe.save_masks else {})
            self.journal.record(block.name, files, {"tensors": {n: r.to_dict() for n, r in reports.items()}})
        self.reports |= reports

    def _collect(self, index: int, block: Block, walk: Walk) -> dict[str, ChannelSums]:
        """Channel sums of the block's inputs; in one pass the dense outputs go on at once."""
        recorder = InputRecorder(self.plan.inventories[index].views)
        with recorder:
            if self.sequential:
                for output in walk.run(block):
                    del output
            else:
                walk.advance(block)
        return distributed.add_up(recorder.sums)

    def _pass_through(self, index: int, block: Block, walk: Walk, done: dict[str, Any]) -> None:
        if self.sequential and self.journal is not None:
            restore_block(self.journal.folder, index, block)
        if not walk.is_last(block):
            walk.advance(block)
        for name, about in done["tensors"].items():
            self.reports[name] = TensorReport(**{**about, "shape": tuple(about["shape"])})

    def _prune_globally(self, batches: list[Tensor]) -> None:
        """One threshold for all tensors: statistics first, then the share of each, then the masks."""
        from crepe.allocation.global_threshold import global_sparsities

        sums: dict[str, ChannelSums] = {}
        sparsities: dict[str, float] = {}
        if not self.finished:
            self._each_block("statistics", batches, lambda i, block, walk: sums.update(self._collect(i, block, walk)))
            sparsities = global_sparsities(lambda: self._scores(sums), self.choices.sparsity)
        self._each_block("pruning", [], lambda i, block, walk: self._visit(i, block, walk, sparsities, sums))

    def _scores(self, sums: Sums) -> Iterator[tuple[str, Tensor]]:
        for index, block in enumerate(self.plan.blocks):
            views = self.plan.inventories[index].views
            with onloaded(block, self.store, self.device):
                for view, importance in scores(views, statistics_of(views, sums), self.choices):
                    yield view.name, importance
