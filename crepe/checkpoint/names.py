"""Names in a file and in the model that loads it: a base model lacks the prefix that a model with a head has."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, TypeVar

Value = TypeVar("Value")


def own_names(model: Any, entries: Mapping[str, Value], present: Collection[str]) -> dict[str, Value]:
    """Entries by the names that `model` has; without those outside of a base model."""
    owned = {own_name(model, name, present): value for name, value in entries.items()}
    return {name: value for name, value in owned.items() if name is not None}


def own_name(model: Any, name: str, present: Collection[str]) -> str | None:
    """What `model` calls what a file calls `name`; None outside of a base model. present: the names in `model`."""
    if name in present:
        return name
    base = getattr(model, "base_model_prefix", "")
    if base and hasattr(model, base):
        longer = f"{base}.{name}"
        return longer if longer in present else name
    shorter = name.removeprefix(f"{base}.")
    return shorter if shorter in present else None
