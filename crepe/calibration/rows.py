"""Calibration rows as a recipe asks for them: the model's own text, or rows of a corpus."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from crepe.calibration.self_text import self_rows
from crepe.calibration.text import read_corpus
from crepe.calibration.tokens import packed_rows
from crepe.errors import UsageError
from crepe.recipe import Recipe


def make_rows(recipe: Recipe, tokenizer: Any, writer: Callable[[], Any]) -> Tensor:
    """(samples, seqlen) tokens; `writer` gives the model where it has to write them itself.

    Raises:
        CrepeError: the text cannot be read, or is too short. UsageError: a model in memory came without a tokenizer.
    """
    if tokenizer is None:
        raise UsageError("a model in memory needs tokenizer=, or rows= with calibration tokens (samples, seqlen)")
    if recipe.calibration == "self":
        return self_rows(writer(), tokenizer, recipe.samples, recipe.seqlen, recipe.seed)
    return packed_rows(tokenizer, read_corpus(recipe.calibration), recipe.samples, recipe.seqlen, recipe.seed)
