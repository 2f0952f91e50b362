"""Folding in the pipeline: before selection, columns are reordered where the rows behind them can follow."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from crepe.calibration.statistics import ChannelSums
from crepe.masks import NofM
from crepe.models.blocks import Block
from crepe.models.coupling import Coupling, Memory, find_couplings, permute_coupling
from crepe.models.probe import Run
from crepe.models.views import View
from crepe.pipeline.prune import scores, statistics_of
from crepe.pipeline.walk import Walk
from crepe.recipe import Choices
from crepe.refine import Folding


def couplings_of(block: Block, walk: Walk, views: list[View], memory: Memory) -> list[Coupling]:
    """What can be reordered in an onloaded block at which the walk stands: couplings whose consumer is pruned."""
    names = {view.name for view in views}
    return [found for found in find_couplings(block, run_once(block, walk), memory) if found.consumer.name in names]


def fold(
    couplings: list[Coupling],
    views: list[View],
    sums: Mapping[str, ChannelSums],
    sparsities: Mapping[str, float],
    choices: Choices,
) -> set[str]:
    """Reorder the input columns of every consumer, in place, with the rows behind them and with its sums.

    The block computes what it computed before. Returns the names of the views that were reordered.
    """
    by_name = {view.name: view for view in views}
    consumers = [by_name[coupling.consumer.name] for coupling in couplings]
    function = next(found.function for found in choices.refinements.values() if isinstance(found, Folding))
    folded = set()
    for coupling, (view, score) in zip(couplings, scores(consumers, statistics_of(views, sums), choices), strict=True):
        pattern = choices.pattern.option_for(sparsities[view.name], score)
        if not isinstance(pattern, NofM):
            continue
        order = function(score, coupling.columns, pattern.n, pattern.m)
        if not torch.equal(order, torch.arange(len(order), device=order.device)):
            permute_coupling(coupling, order)
            sums[view.name].reorder(order)
            folded.add(view.name)
    return folded


def run_once(block: Block, walk: Walk, seen: Callable[[Any], Any] | None = None) -> Run:
    """The block on the first batch: its output and what it leaves in its arguments for later blocks.

    seen: what of the output counts.
    """

    def run() -> object:
        call = next(walk.calls(block))
        with torch.no_grad():
            output = walk.forward(call)
        return [seen(output) if seen else output, call.kwargs]

    return run
