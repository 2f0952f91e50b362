"""Whether a model's own config can say the widths that it was cut to, so that plain transformers loads it."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from crepe.vision.shapes import Shapes, shapes_of


def native_config(model: Any, shapes: Shapes) -> Any | None:
    """A config whose dense model has the shapes of `model`, None where there is none.

    shapes: those that differ from the dense model's; where nothing differs the config stays as it is. No name of an
    option is known here: every number of the config is tried, and what the network becomes decides.
    """
    if not shapes:
        return model.config
    from accelerate import init_empty_weights

    wanted = shapes_of(model)
    for config in _variants(model, shapes):
        try:
            with init_empty_weights():
                found = shapes_of(type(model)(config))
        except Exception:
            continue  # a number that the architecture does not allow is not the one
        if found == wanted:
            return config
    return None


def _variants(model: Any, shapes: Shapes) -> Iterator[Any]:
    """Configs with one number changed as the widths were: to the new width, or by the share that is left."""
    ratios = {round(after / before, 9): (before, after) for before, after in _changes(model, shapes)}
    if len(ratios) != 1:
        return
    (ratio,) = ratios
    pairs = set(_changes(model, shapes))
    for name, value in model.config.to_dict().items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or value <= 0:
            continue
        new: float | None = value * ratio if isinstance(value, float) else None
        if len(pairs) == 1 and isinstance(value, int):
            new = next((after for before, after in pairs if before == value), None)
        if new is not None:
            config = copy.deepcopy(model.config)
            setattr(config, name, new)
            yield config


def _changes(model: Any, shapes: Shapes) -> list[tuple[int, int]]:
    """(width before, width after) of every axis that was cut."""
    from accelerate import init_empty_weights

    with init_empty_weights():
        dense = shapes_of(type(model)(model.config))
    return [
        (before, after)
        for name, shape in shapes.items()
        for before, after in zip(dense[name], shape, strict=True)
        if before != after
    ]
