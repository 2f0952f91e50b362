"""From the blocks of a structured run to a folder with really smaller matrices."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from crepe.checkpoint.blocks import block_state, finished_block
from crepe.checkpoint.section import read_section, write_section
from crepe.checkpoint.sliced import slice_config, write_slices
from crepe.checkpoint.write import assemble
from crepe.models.blocks import Block
from crepe.pipeline.run import Runner


def assemble_slices(work: Path, model: Any, done: Runner) -> tuple[Path, dict[str, Any]]:
    """Write weights and config below `work/final`.

    Returns:
        That folder, and what to say of it: parameters now and before, and what the config says, for all layers or for
        each.
    """
    blocks, slices = done.plan.blocks, done.slices()
    described = slice_config(model, blocks, slices)

    def state(index: int, block: Block) -> dict[str, Tensor]:
        # Where there is no journal, the model is in memory and pruned.
        return finished_block(done.journal.folder, index) if done.journal else block_state(model, block)

    shards = write_slices(work, model, blocks, slices, state)
    about = {
        "parameters": described.after,
        "dense_parameters": described.before,
        "per_layer": described.per_layer,
        "config": described.changed,
    }
    final = assemble(work, model, blocks, done.store, shards=shards, config=described.config)
    if described.per_layer:  # the guard against those who do not know the widths
        write_section(final, read_section(final))
    return final, about
