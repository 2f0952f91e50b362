"""The run of a structured pattern: what hangs together is found first, then units are removed block by block."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from crepe.allocation.base import Budget, Summary
from crepe.allocation.bounds import parse_bounds
from crepe.checkpoint.blocks import cuts_name, read_cuts
from crepe.checkpoint.sliced import Slices, slice_config
from crepe.errors import CrepeError, UsageError
from crepe.masks import Mask, kept_units
from crepe.models.blocks import Block
from crepe.models.units import UnitGroup, find_units
from crepe.models.views import Skipped
from crepe.pipeline import distributed
from crepe.pipeline.attributes import following_attributes
from crepe.pipeline.capture import InputRecorder
from crepe.pipeline.prune import TensorReport, matrices, statistics_of
from crepe.pipeline.run import Runner, Sums
from crepe.pipeline.units import Removed, clear_vectors, cuts_of, records_of, remove_units
from crepe.pipeline.unread import STREAMS, Unread
from crepe.pipeline.walk import Walk

# Structure shows in a few dozen tokens of one row as well as in all.
_TOKENS = 64


class UnitRunner(Runner):
    """Removes MLP channels or heads. groups: by block; keep: units kept of each group, by the name of its consumer."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.groups: dict[str, list[UnitGroup]] = {}
        self.keep: dict[str, int] = {}
        self.removed: dict[str, Removed] = {}
        # Numbers of modules that follow their heads, by consumer.
        self.attributes: dict[str, dict[str, int] | None] = {}
        # Why a block has no units, by block.
        self.reasons: dict[str, str] = {}

    def prune(self, rows: Tensor | None, batch_size: int) -> dict[str, TensorReport]:
        reports = super().prune(rows, batch_size)
        unit = self.choices.pattern
        self.left = [Skipped(v.name, v.shape, f"no part of a {unit}") for v in self.plan.views if v.name not in reports]
        self.notes = [f"{name} keeps its size: {reason}" for name, reason in self.reasons.items()]
        if self.choices.recipe.format == "packed":
            self.notes.append(f"stored without its zeros, computed with them: --format sliced cuts each {unit} out")
        return reports

    def _sparsities(self, batches: list[Tensor]) -> dict[str, float]:
        if self.finished:
            return {}
        unread = Unread()
        rows = [batches[0][:1, :_TOKENS]]
        self._each_block("structure", rows, lambda i, b, walk: self._find(i, b, walk, unread), STREAMS)
        if unread.read:
            self._forget(unread.ignored)
        self._require_units()
        sparsities = _equal_for_experts(self.groups, super()._sparsities(batches))
        self._count(sparsities)
        if self.choices.recipe.format == "sliced":
            self._require_config()
        return sparsities

    def _find(self, index: int, block: Block, walk: Walk, unread: Unread) -> None:
        run = unread.run_once(block, walk)
        found = find_units(block, run, self.choices.pattern.unit, self.memory)
        prunable = {view.name for view in self.plan.inventories[index].views}
        groups = [group for group in found.groups if all(view.name in prunable for view in group.views)]
        self.groups[block.name] = groups
        if self.choices.pattern.unit == "head" and self.choices.recipe.format == "sliced":
            for group in groups:
                self.attributes[group.name] = following_attributes(group, block, self.plan.blocks, run)
        if not groups:
            self.reasons[block.name] = found.reason or "what belongs to its units is excluded"
        if not walk.is_last(block):
            walk.advance(block)

    def _forget(self, names: list[str]) -> None:
        """Of these blocks, what they return beside the hidden states was taken for unread, and a later one read it."""
        for name in names:
            self.groups[name] = []
            self.reasons[name] = "a later part reads what it returns beside the hidden states, which heads change"

    def _require_units(self) -> None:
        """Raises CrepeError where no block has any unit."""
        if len(self.reasons) == len(self.groups):
            name, reason = next(iter(self.reasons.items()))
            raise CrepeError(
                f"pattern {self.choices.pattern} finds nothing to remove in any block, such as in {name}: {reason}"
            )

    def _count(self, sparsities: Mapping[str, float]) -> None:
        """Units kept of each group. Raises UsageError where one would be emptied, or nothing would be removed."""
        pattern, multiple = self.choices.pattern, self.choices.round_to
        every = [group for groups in self.groups.values() for group in groups]
        self.keep = {group.name: kept_units(group.units, sparsities[group.name], multiple) for group in every}
        for group in every:
            if not self.keep[group.name]:
                raise UsageError(
                    f"sparsity {sparsities[group.name]:g} would leave none of the {group.units} {pattern}s behind "
                    f"{group.name!r}: lower the sparsity"
                )
        if self.choices.sparsity and all(self.keep[group.name] == group.units for group in every):
            largest = max(every, key=lambda group: group.units)
            raise UsageError(
                f"nothing would be removed: with sparsity {self.choices.sparsity:g} and round_to {multiple}, "
                f"all {largest.units} {pattern}s behind {largest.name!r} stay"
            )

    def _require_config(self) -> None:
        """Raises UsageError where no checkpoint can hold the shapes that are to come."""
        kept, units = {}, {}
        for name, groups in self.groups.items():
            stays = {group.name: torch.arange(group.units) < self.keep[group.name] for group in groups}
            kept[name], units[name] = cuts_of(groups, stays), records_of(groups, self.keep, self.attributes)
        slice_config(self.model, self.plan.blocks, Slices(kept, units))

    def _prune_block(
        self, index: int, block: Block, sums: Sums, sparsities: Mapping[str, float], folded: set[str]
    ) -> tuple[dict[str, TensorReport], dict[str, Mask]]:
        done = remove_units(self.groups[block.name], sums, self.keep, self.choices)
        self.removed[block.name] = done
        self.units[block.name] = records_of(self.groups[block.name], self.keep, self.attributes)
        return done.reports, done.masks

    def _repair(self, index: int, block: Block, *arguments: Any) -> dict[str, list[float]]:
        fits = super()._repair(index, block, *arguments)
        for group in self.groups[block.name] if fits else ():
            clear_vectors(group, self.removed[block.name].kept[group.name])
        return fits

    def _more(self, block: Block) -> dict[str, Any]:
        return {"units": self.units[block.name], "reason": self.reasons.get(block.name, "")}

    def _pass_through(self, index: int, block: Block, walk: Walk, done: dict[str, Any]) -> None:
        super()._pass_through(index, block, walk, done)
        self.units[block.name] = done["units"]
        if done["reason"]:
            self.reasons[block.name] = done["reason"]

    def _files(self, index: int, block: Block, masks: dict[str, Mask]) -> dict[str, dict[str, Tensor]]:
        cuts = self.cuts(block)
        return super()._files(index, block, masks) | ({cuts_name(index): cuts} if cuts else {})

    def cuts(self, block: Block) -> dict[str, Tensor]:
        return cuts_of(self.groups[block.name], self.removed[block.name].kept)

    def slices(self) -> Slices:
        """What is cut out, from what the journal keeps where there is one."""
        kept = {}
        for index, block in enumerate(self.plan.blocks):
            path = self.journal.folder / cuts_name(index) if self.journal else None
            kept[block.name] = self.cuts(block) if path is None else read_cuts(path)
        return Slices(kept, self.units)

    # Allocation: the consumers stand for their units.

    def _budget(self) -> Budget:
        views = [group.view for groups in self.groups.values() for group in groups]
        shapes = {view.name: view.shape for view in views}
        bounds = parse_bounds(self.choices.recipe.bounds, shapes)
        return Budget(shapes=shapes, sparsity=self.choices.sparsity, pattern=self.choices.pattern, bounds=bounds)

    def _measure(self, index: int, block: Block, walk: Walk, budget: Budget) -> dict[str, Summary]:
        rule, groups = self.choices.allocation, self.groups[block.name]
        views = [group.view for group in groups]
        with InputRecorder(views, self.choices.criterion.needs | rule.needs) as recorder:
            walk.advance(block)
        statistics = statistics_of(views, distributed.add_up(recorder.sums))
        summaries: dict[str, Summary] = {}
        for width in sorted({group.width for group in groups}):
            alike = [group.view for group in groups if group.width == width]
            choices = replace(self.choices, pattern=replace(self.choices.pattern, width=width))
            uniform = {view.name: choices.sparsity for view in alike}
            selected = matrices(alike, statistics, uniform, choices)
            found = {view.name: replace(matrix, weight=matrix.dense) for view, matrix in selected}
            summaries |= rule.measure(found, replace(budget, pattern=choices.pattern))
        return summaries


def _equal_for_experts(groups: Mapping[str, list[UnitGroup]], sparsities: Mapping[str, float]) -> dict[str, float]:
    """The experts of one tensor stay equally wide: each gets the mean of theirs."""
    together: dict[str, list[str]] = {}
    for group in (group for found in groups.values() for group in found):
        together.setdefault(group.consumer.name, []).append(group.name)
    means = {key: sum(sparsities[name] for name in names) / len(names) for key, names in together.items()}
    return {name: means[key] for key, names in together.items() for name in names}
