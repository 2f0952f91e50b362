"""Loading what crepe wrote, or any model that crepe can prune."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from crepe.models.resolve import Source


def load(model: str, *, dtype: str = "auto", device: str = "cpu", trust_remote_code: bool = False) -> tuple[Any, Any]:
    """(model, tokenizer) of an output folder, Hub id, .gguf file or alias; (model, preprocessor) for an image model.

    Raises:
        CrepeError: no such model, or its files are broken.
    """
    from crepe.models.gguf import reading_once
    from crepe.models.kind import is_image_model
    from crepe.models.load import load_tokenizer, parse_device
    from crepe.models.resolve import announce, resolve

    if is_image_model(str(model)):
        from crepe.vision.load import load_image_model

        return load_image_model(str(model), device=device)
    place = parse_device(device)
    source = resolve(str(model))
    announce(source)
    with reading_once() if source.gguf else nullcontext():
        opened = _open(source, dtype, place, trust_remote_code)
        return opened, load_tokenizer(source, trust_remote_code)


def load_model(model: str, *, dtype: str = "auto", device: str = "cpu", trust_remote_code: bool = False) -> Any:
    """A language model alone: its folder needs no tokenizer. Raises like `load`."""
    from crepe.models.gguf import reading_once
    from crepe.models.load import parse_device
    from crepe.models.resolve import announce, resolve

    place = parse_device(device)
    source = resolve(str(model))
    announce(source)
    with reading_once() if source.gguf else nullcontext():
        return _open(source, dtype, place, trust_remote_code)


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
