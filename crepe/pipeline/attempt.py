"""Walking a model until it works: with the largest batch that fits, and all at once where its blocks have no order."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from crepe.errors import CrepeError, UsageError
from crepe.models.wide import wide_products
from crepe.pipeline import distributed
from crepe.pipeline.journal import Journal
from crepe.pipeline.plan import make_plan
from crepe.pipeline.run import Runner
from crepe.recipe import Choices
from crepe.refine import Refinement


def require_one_process(choices: Choices) -> None:
    """Raises UsageError where something looks at whole blocks, of which each rank sees its own batches only."""
    whole = [name for name, found in choices.refinements.items() if not isinstance(found, Refinement)]
    if whole and distributed.world_size() > 1:
        raise UsageError(f"refinement {whole[0]!r} needs all batches in one process: run it without a launcher")


def needs_rows(choices: Choices) -> bool:
    return bool(choices.needs | choices.allocation.needs) or choices.fits_blocks


def walk_model(
    model: Any, choices: Choices, device: torch.device, journal: Journal | None, rows: Tensor | None
) -> Runner:
    """Walk with the largest batch that fits; the whole model at once where its blocks cannot be walked.

    Raises:
        CrepeError: memory does not suffice and the walk cannot start again: for one row, for several processes, or
            where the model in memory has been changed already.
    """
    from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

    from crepe.pipeline.walk import OutOfOrder

    plan, batch_size = make_plan(model, choices), choices.recipe.batch_size
    while True:
        runner = _runner(choices)(model, plan, choices, device, journal)
        try:
            with wide_products(device):
                runner.prune(rows, batch_size)
            return runner
        except OutOfOrder as error:
            _require_restart(runner, f"the forward does not pass the blocks in order (at {error}), noticed too late")
            plan = plan.as_one_block(model, choices, str(error))
            if journal is not None:
                journal.forget()
        except Exception as error:
            if not should_reduce_batch_size(error):
                raise
            _require_restart(runner, f"memory does not suffice for --batch-size {batch_size}", batch_size > 1)
            batch_size //= 2
            clear_device_cache(garbage_collection=True)


def _runner(choices: Choices) -> type[Runner]:
    from crepe.pipeline.depth import BlockRunner
    from crepe.pipeline.structured import UnitRunner

    if not choices.structured:
        return Runner
    return BlockRunner if choices.pattern.unit == "block" else UnitRunner


def _require_restart(runner: Any, reason: str, possible: bool = True) -> None:
    if not possible or runner.modified or distributed.world_size() > 1:
        raise CrepeError(f"{reason}: start again with a smaller --batch-size or --seqlen")
