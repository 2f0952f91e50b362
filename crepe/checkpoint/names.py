"""Names in a file and in the model that loads it: a base model lacks the prefix that a model with a head has."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any


def own_name(model: Any, name: str, present: Collection[str]) -> str | None:
    """What `model` calls what a file calls `name`. present: its names. None: it lies outside of a
    base model."""
    if name in present:
        return name
    base = getattr(model, "base_model_prefix", "")
    if base and hasattr(model, base):
        longer = f"{base}.{name}"
        return longer if longer in present else name
    shorter = name.removeprefix(f"{base}.")
    return shorter if shorter in present else None
