"""A run of a model that is in memory: pruned in place, and saved where an output is given."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from torch import Tensor

from crepe.calibration.rows import make_rows
from crepe.checkpoint.convert import save_packed
from crepe.checkpoint.packed import notes_of, sizes_of
from crepe.checkpoint.write import publish, require_replaceable
from crepe.errors import CrepeError, UsageError
from crepe.models.modes import evaluating
from crepe.models.resolve import Source
from crepe.pipeline import distributed
from crepe.pipeline.attempt import needs_rows, require_one_process, walk_model
from crepe.pipeline.journal import work_folder
from crepe.pipeline.output import describe
from crepe.pipeline.result import Result, result_of
from crepe.pipeline.run import Runner
from crepe.pipeline.slices import assemble_slices
from crepe.recipe import build, choose


def prune_object(model: Any, tokenizer: Any, output: Any, fields: dict[str, Any], started: float) -> Result:
    """A model in memory: pruned in place, and saved where an output is given."""
    from crepe.models.load import use_eager_experts

    rows = fields.pop("rows", None)
    recipe = build({"model": getattr(model, "name_or_path", "") or type(model).__name__, **fields})
    choices = choose(recipe)
    require_one_process(choices)
    if output is None and recipe.format == "sliced":
        raise UsageError("format 'sliced' writes a folder and leaves the model's own shapes: give an output")
    if rows is None and needs_rows(choices):
        rows = make_rows(recipe, tokenizer, lambda: model)
    if output is not None and Path(output).exists():
        require_replaceable(Path(output), Path(recipe.model))
        if not recipe.overwrite:
            raise CrepeError(f"{output} exists: choose another folder, or overwrite=True")
    use_eager_experts(model)
    device = next(model.parameters()).device
    with evaluating(model):
        done = walk_model(model, choices, device, None, rows)
    result = result_of(str(output) if output else None, done, started, recipe.model)
    result.model = model
    if output is not None and distributed.is_main():
        _save_object(model, tokenizer, Path(output), done, rows, result)
    return result


def _save_object(model: Any, tokenizer: Any, output: Path, done: Runner, rows: Tensor | None, result: Result) -> None:
    """The folder of a model that was pruned in memory, complete as that of a model by name."""
    choices, final = done.choices, work_folder(output) / "final"
    if final.parent.exists() and not choices.recipe.overwrite:
        raise CrepeError(f"{final.parent} holds an unfinished run: move it away, or overwrite=True")
    shutil.rmtree(final.parent, ignore_errors=True)
    if choices.recipe.format == "packed":
        patterns = {name: report.pattern for name, report in result.tensors.items()}
        written, reports = save_packed(model, patterns, final.parent)
        result.packed = sizes_of(written, reports)
        result.notes += notes_of(reports)
    elif choices.recipe.format == "sliced":
        final.parent.mkdir(parents=True)
        _, result.sliced = assemble_slices(final.parent, model, done)
    else:
        model.save_pretrained(final)
    if tokenizer is not None:
        tokenizer.save_pretrained(final)
    name = choices.recipe.model
    describe(final, choices, Source(name, name, Path()), rows, result, {})
    publish(final, output, choices.recipe.overwrite)
