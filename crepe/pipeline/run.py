"""The walk of one run: collect statistics, prune, repair, record, block by block."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor

from crepe.allocation.base import Budget, Summary
from crepe.calibration.statistics import ChannelSums
from crepe.checkpoint.blocks import block_files, masks_name, restore_block, shard_name
from crepe.checkpoint.packed import PackedReport, layouts_of, packed_tensors
from crepe.checkpoint.sliced import Slices
from crepe.masks import Mask, MaskSet
from crepe.models.blocks import Block
from crepe.models.coupling import Coupling, Memory
from crepe.models.onload import onloaded, take_over
from crepe.models.views import Skipped, View
from crepe.pipeline import distributed
from crepe.pipeline.capture import InputRecorder
from crepe.pipeline.fold import couplings_of, fold
from crepe.pipeline.journal import Journal
from crepe.pipeline.plan import Plan
from crepe.pipeline.prune import TensorReport, matrices, prune_views, scores, statistics_of
from crepe.pipeline.refit import fit_block, hidden_of
from crepe.pipeline.walk import Walk
from crepe.progress import bar
from crepe.recipe import Choices
from crepe.refine import BlockRefinement, Folding

Sums = Mapping[str, ChannelSums]
# Streams of a walk: what the pruned model computes, and beside it what the dense one does.
_PRUNED, _DENSE = 0, 1


class Runner:
    """Prunes the blocks of one model. State only: what the run is made of, and what became of each tensor and block."""

    def __init__(self, model: Any, plan: Plan, choices: Choices, device: torch.device, journal: Journal | None) -> None:
        self.model = model
        self.plan = plan
        self.choices = choices
        self.device = device
        self.journal = journal
        self.block_refinements = {n: r for n, r in choices.refinements.items() if isinstance(r, BlockRefinement)}
        self.finished = journal is not None and all(block.name in journal.lines for block in plan.blocks)
        self.store = take_over(model, plan.blocks, device)
        self.reports: dict[str, TensorReport] = {}
        # By block and refinement: the block's error on held-out batches before and after.
        self.fits: dict[str, dict[str, list[float]]] = {}
        # By parameter, where the output is packed.
        self.packed: dict[str, PackedReport] = {}
        # What was found out about how the matrices of a block hang together, for the next blocks.
        self.memory: Memory = {}
        # Weights that came from disk can be read again; those of a model in memory are gone once they are pruned.
        self.in_memory = not any(parameter.is_meta for parameter in model.parameters())
        self.modified = False
        # What only the walk shows: for the report.
        self.notes: list[str] = []
        self.units: dict[str, Any] = {}
        self.left: list[Skipped] = []

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
            return self.reports
        sparsities = self._sparsities(batches)
        streams = 2 if self.block_refinements else 1
        self._each_block("pruning", batches, lambda i, b, walk: self._visit(i, b, walk, sparsities, None), streams)
        return self.reports

    def _each_block(
        self, what: str, batches: list[Tensor], visit: Callable[[int, Block, Walk], None], streams: int = 1
    ) -> None:
        """Blocks one after the other, each in memory while it is the current one."""
        walk = Walk(self.model, self.plan.blocks, batches, streams)
        with walk.started(), bar(what, len(self.plan.blocks)) as advance:
            for index, block in enumerate(self.plan.blocks):
                with onloaded(block, self.store, self.device):
                    visit(index, block, walk)
                advance()

    def _visit(self, index: int, block: Block, walk: Walk, sparsities: Mapping[str, float], known: Sums | None) -> None:
        views = self.plan.inventories[index].views
        # Before the walk goes on, and for finished blocks as well: what one block shows, the next ones rely on.
        couplings = self._couplings(block, walk, views)
        done = self.journal.lines.get(block.name) if self.journal else None
        if done is not None:
            self._pass_through(index, block, walk, done)
            return
        targets = [hidden_of(output) for output in walk.advancing(block, _DENSE)] if self.block_refinements else []
        sums = self._collect(index, block, walk) if known is None else known
        self.modified = self.in_memory
        folded = fold(couplings, views, sums, sparsities, self.choices) if couplings else set()
        reports, masks = self._prune_block(index, block, sums, sparsities, folded)
        fits = self._repair(index, block, walk, masks, targets)
        if fits:
            self.fits[block.name] = fits
        if self.plan.sequential and not walk.is_last(block):
            walk.advance(block, _PRUNED)
        self._record(index, block, reports, masks)
        self.reports |= reports

    def _prune_block(
        self, index: int, block: Block, sums: Sums, sparsities: Mapping[str, float], folded: set[str]
    ) -> tuple[dict[str, TensorReport], dict[str, Mask]]:
        return prune_views(self.plan.inventories[index].views, sums, sparsities, self.choices, folded)

    def _couplings(self, block: Block, walk: Walk, views: list[View]) -> list[Coupling]:
        folding = any(isinstance(found, Folding) for found in self.choices.refinements.values())
        if self.finished or not views or not folding:
            return []
        return couplings_of(block, walk, views, self.memory)

    def _repair(
        self, index: int, block: Block, walk: Walk, masks: Mapping[str, Mask], targets: list[Tensor]
    ) -> dict[str, list[float]]:
        """The block's error before and after each block refinement."""
        recipe = self.choices.recipe
        views = [view for view in self.plan.inventories[index].views if view.name in masks]
        fits: dict[str, list[float]] = {}
        if not masks:
            return fits
        for name, refinement in self.block_refinements.items():
            seed = recipe.seed + index
            fit = fit_block(self.model, block, walk, views, masks, targets, refinement, recipe.refit_steps, seed)
            fits[name] = [fit.before, fit.after]
        return fits

    def _record(self, index: int, block: Block, reports: dict[str, TensorReport], masks: dict[str, Mask]) -> None:
        if self.journal is None or not distributed.is_main():
            return
        before = set(self.packed)
        files = self._files(index, block, masks)
        about = {name: report.to_dict() for name, report in reports.items()}
        sizes = {name: asdict(report) for name, report in self.packed.items() if name not in before}
        line = {"tensors": about, "fits": self.fits.get(block.name, {}), "packed": sizes, **self._more(block)}
        self.journal.record(block.name, files, line)

    def _files(self, index: int, block: Block, masks: dict[str, Mask]) -> dict[str, dict[str, Tensor]]:
        """What to write of a finished block: file name -> tensors."""
        kept = masks if self.choices.recipe.save_masks else {}
        if self.choices.recipe.format != "packed":
            return block_files(self.model, index, block, kept)
        tensors, packed = packed_tensors(self.model, block, self.plan.inventories[index].views, masks)
        self.packed |= packed
        return {shard_name(index): tensors} | ({masks_name(index): MaskSet(kept).packed()} if kept else {})

    def slices(self) -> Slices:
        """What a sliced checkpoint leaves out."""
        return Slices()

    def _more(self, block: Block) -> dict[str, Any]:
        """What else the journal keeps of a finished block."""
        return {}

    def _collect(self, index: int, block: Block, walk: Walk) -> dict[str, ChannelSums]:
        """Sums over the inputs of the block's matrices; in one pass the dense outputs go on at once."""
        recorder = InputRecorder(self.plan.inventories[index].views, self.choices.needs)
        with recorder:
            if self.plan.sequential:
                for output in walk.run(block):
                    del output
            else:
                walk.advance(block)
        return distributed.add_up(recorder.sums)

    def _pass_through(self, index: int, block: Block, walk: Walk, done: dict[str, Any]) -> None:
        packed = {name: PackedReport(**about) for name, about in done["packed"].items()}
        self.packed |= packed
        if self.block_refinements and not walk.is_last(block):
            walk.advance(block, _DENSE)
        if self.plan.sequential and self.journal is not None:
            restore_block(self.journal.folder, index, block, layouts_of(packed))
        if not walk.is_last(block):
            walk.advance(block)
        if done["fits"]:
            self.fits[block.name] = done["fits"]
        for name, about in done["tensors"].items():
            self.reports[name] = TensorReport(**{**about, "shape": tuple(about["shape"])})

    def _sparsities(self, batches: list[Tensor]) -> dict[str, float]:
        """What the allocation gives to each tensor; rules that look at the dense model get a pass of their own."""
        if self.finished:
            return {}
        rule, budget = self.choices.allocation, self._budget()
        summaries: dict[str, Summary] = {}
        if rule.measure is not None:
            self._each_block(
                "measuring", batches, lambda i, b, walk: summaries.update(self._measure(i, b, walk, budget))
            )
        found: dict[str, float] = rule.divide(summaries, budget)
        return found

    def _budget(self) -> Budget:
        return self.plan.budget(self.choices)

    def _measure(self, index: int, block: Block, walk: Walk, budget: Budget) -> dict[str, Summary]:
        rule, views = self.choices.allocation, self.plan.inventories[index].views
        with InputRecorder(views, self.choices.criterion.needs | rule.needs) as recorder:
            walk.advance(block)
        statistics = statistics_of(views, distributed.add_up(recorder.sums))
        uniform = {view.name: self.choices.sparsity for view in views}
        # Rules read the dense weights: the masked copies of a whole block need not stay in memory.
        found = {
            view.name: replace(matrix, weight=matrix.dense)
            for view, matrix in matrices(views, statistics, uniform, self.choices)
        }
        summaries: dict[str, Summary] = rule.measure(found, budget)
        return summaries

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
