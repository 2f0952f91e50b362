"""Loading what crepe wrote, or any model that crepe can prune."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from crepe.errors import UsageError

if TYPE_CHECKING:
    import torch

    from crepe.models.resolve import Source


def load(model: str, *, dtype: str = "auto", device: str = "cpu", trust_remote_code: bool = False) -> tuple[Any, Any]:
    """(model, tokenizer) of an output folder, Hub id, .gguf file or alias; (model, preprocessor) for an image model.

    Raises:
        CrepeError: no such model, or its files are broken.
    """
    from crepe.models.kind import is_image_model
    from crepe.models.load import load_tokenizer

    if is_image_model(str(model)):
        from crepe.vision.load import load_image_model

        return load_image_model(str(model), device=device)
    with _found(model, device) as (source, place):
        return _open(source, dtype, place, trust_remote_code), load_tokenizer(source, trust_remote_code)


def load_model(model: str, *, dtype: str = "auto", device: str = "cpu", trust_remote_code: bool = False) -> Any:
    """A language model alone: its folder needs no tokenizer. Raises like `load`, and UsageError for an image model."""
    from crepe.models.kind import is_image_model

    if is_image_model(str(model)):
        raise UsageError(f"{model} is an image model: `crepe eval {model} --latency` times it")
    with _found(model, device) as (source, place):
        return _open(source, dtype, place, trust_remote_code)


@contextmanager
def _found(model: str, device: str) -> Iterator[tuple[Source, torch.device]]:
    """Where a model lies and where it shall go; inside, a .gguf file is read once. The device is checked first."""
    from crepe.models.gguf import reading_once
    from crepe.models.load import parse_device
    from crepe.models.resolve import announce, resolve

    place = parse_device(device)
    source = resolve(str(model))
    announce(source)
    with reading_once() if source.gguf else nullcontext():
        yield source, place


def _open(source: Source, dtype: str, place: torch.device, trust_remote_code: bool) -> Any:
    from crepe.checkpoint.bitmask import is_bitmask, open_bitmask
    from crepe.checkpoint.fallback import warn_of_fallbacks
    from crepe.models.load import open_model

    if not source.gguf and is_bitmask(source.folder):
        opened = open_bitmask(source, dtype)
    else:
        opened = open_model(source, dtype, trust_remote_code=trust_remote_code)
    opened = opened.to(place)
    if place.type != "cpu":  # what was loaded onto the CPU has been silent so far
        warn_of_fallbacks(opened)
    return opened
