"""save_pretrained of a model that was loaded packed: packed again, with the guard."""

from __future__ import annotations

from collections.abc import Mapping
from inspect import signature
from pathlib import Path
from typing import Any

from torch import Tensor

from crepe.checkpoint.layouts import Layout, as_matrix
from crepe.checkpoint.modules import PackedLinear, owner_of
from crepe.checkpoint.packing import pack
from crepe.checkpoint.section import read_section, write_section
from crepe.errors import CrepeError
from crepe.masks import Mask, Unstructured


def packed_again(model: Any, layouts: Mapping[str, Layout]) -> tuple[dict[str, Tensor], dict[str, Layout]]:
    """The state of `model` with everything that was unpacked for loading as a bitmap, and what its layouts are now."""
    state: dict[str, Tensor] = dict(model.state_dict())
    found: dict[str, Layout] = {}
    for name, layout in layouts.items():
        if isinstance(owner_of(model, name)[0], PackedLinear):
            found[name] = layout
            continue
        weight = state.pop(name)
        packed = pack(weight, [Mask(as_matrix(weight != 0, False), Unstructured())])
        state |= {name + suffix: tensor for suffix, tensor in packed.tensors.items()}
        if packed.layout is not None:
            found[name] = packed.layout
    return state, found


def save_guarded(model: Any, save_directory: str | Path, *args: Any, **kwargs: Any) -> None:
    """The model's own save_pretrained, which would drop the guard from config.json.

    Raises:
        CrepeError: the folder would be uploaded at once, before the guard is in it.
    """
    given = signature(type(model).save_pretrained).bind(model, save_directory, *args, **kwargs).arguments
    if given.get("push_to_hub"):
        raise CrepeError(
            "save_pretrained(push_to_hub=True) uploads before config.json says that only crepe can read the model: "
            "upload the output folder with `crepe push DIR owner/name`, or use model.push_to_hub('owner/name')"
        )
    type(model).save_pretrained(model, save_directory, *args, **kwargs)
    write_section(Path(save_directory), read_section(Path(save_directory)))
