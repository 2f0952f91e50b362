"""`crepe prune` from the words of a recipe to what does it: a model by name, one in memory, or an image model."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from crepe.errors import UsageError
from crepe.models.kind import is_image_model
from crepe.models.resolve import Source
from crepe.pipeline import distributed
from crepe.pipeline.attempt import require_one_process
from crepe.pipeline.in_memory import prune_object
from crepe.pipeline.named import find_model, prune_named
from crepe.pipeline.plan import Plan, make_plan
from crepe.recipe import Choices, Recipe, build, choose


def prune(model: Any = None, output: str | Path | None = None, *, tokenizer: Any = None, **fields: Any) -> Any:
    """Prune a model: keyword arguments are the fields of `crepe.recipe.Recipe`.

    Args:
        model: a Hub id, folder, .gguf file or alias; or a transformers model in memory, which is pruned in place.
        output: the folder to write; may be left out for a model in memory.
        tokenizer: for a model in memory, whose calibration text has to become tokens.
        rows: for a language model in memory, its calibration tokens (samples, seqlen), instead of `calibration`.
        example: for an image model in memory, pixel values (count, 3, height, width) that it takes.
        preprocess: for an image model in memory, what turns a list of pictures into such values, where images are
            needed.

    Returns:
        A `Result`, or for an image model a `crepe.vision.job.ImageResult`.

    Raises:
        CrepeError: one line that says what was wrong and what to do (UsageError for wrong words).
    """
    started = time.perf_counter()
    distributed.start()
    example = fields.pop("example", None)
    if example is not None and not isinstance(model, (str, Path)):
        from crepe.vision.job import prune_image_object

        return prune_image_object(model, example, {**fields, "output": output}, started)
    if model is not None and not isinstance(model, (str, Path)):
        _require_text(model)
        return prune_object(model, tokenizer, output, fields, started)
    given = {**fields, "output": str(output) if output else None}
    if model is not None:
        given["model"] = str(model)
    given = {key: value for key, value in given.items() if value is not None}
    recipe = build(given)
    if is_image_model(recipe.model, recipe.revision):
        from crepe.vision.job import prune_image_model

        return prune_image_model(given, started)
    if recipe.output is None:
        raise UsageError("no output: give --output with the folder to write")
    choices = choose(recipe)
    require_one_process(choices)
    return prune_named(recipe, choices, started)


def _require_text(model: Any) -> None:
    """Raises UsageError for a module in memory that writes no tokens."""
    foreign = not hasattr(model, "get_output_embeddings")
    sees = getattr(model, "main_input_name", "") == "pixel_values"
    if foreign or (sees and model.get_output_embeddings() is None):
        raise UsageError(
            f"{type(model).__name__} is no language model of transformers: for an image network give example=, pixel "
            "values that it takes"
        )


def prepare(recipe: Recipe, choices: Choices) -> tuple[Source, Any, Plan]:
    """Resolve the model and plan the run on the meta device; nothing is touched."""
    from crepe.models.load import skeleton

    source = find_model(recipe, weights=False)
    bones = skeleton(source, recipe.dtype, recipe.trust_remote_code)
    return source, bones, make_plan(bones, choices)
