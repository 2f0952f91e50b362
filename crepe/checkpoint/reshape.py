"""A config that makes a smaller model: keys are found by their values and accepted by the shapes that they lead to."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch

from crepe.errors import UsageError

Shapes = Mapping[str, tuple[int, ...]]
# Old number -> what it may become: widths, counts of heads, of key-value heads, of blocks.
Numbers = Mapping[int, Sequence[int]]
Edits = dict[str, Any]
# Parameters, and which of their dimensions, that are not as wanted; None where one is missing or too many.
_Misfits = frozenset[tuple[str, int | None]]


@dataclass(frozen=True)
class Fit:
    """The config with the edits of its text part that were taken, and the parameters that still have another shape."""

    config: Any
    edits: Edits
    misfits: _Misfits

    @property
    def names(self) -> list[str]:
        return sorted({name for name, _ in self.misfits})


def build_on_meta(model: Any, config: Any) -> Any:
    """A model of the class of `model` from `config`, without weights."""
    with torch.device("meta"):
        return type(model)._from_config(copy.deepcopy(config), dtype=model.dtype)


def shapes_of(model: Any) -> dict[str, tuple[int, ...]]:
    """Shape of every parameter that is not another one under a second name, whether the two are one tensor yet or
    not: where weights stay on disk they are tied late."""
    tied = getattr(model, "all_tied_weights_keys", None) or {}
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters() if name not in tied}


def fit_config(model: Any, wanted: Shapes, numbers: Numbers, extra: Sequence[Edits] = (), prefix: str = "") -> Fit:
    """Edit the config of `model` until a model built from it has the shapes `wanted`.

    An edit puts another number where the config has a number of `numbers`, alone, in a list or where a key is not set.
    It is taken where it makes fewer shapes wrong and none that was right. extra: edits that are tried first and taken
    where they make nothing worse, such as naming a size that was implied. prefix: only parameters of these names count.
    """
    config = copy.deepcopy(model.config)
    fit = Fit(config, {}, _misfits(model, config, wanted, prefix))
    for edits in extra:
        text = config.get_text_config()
        new = {key: value for key, value in edits.items() if getattr(text, key, None) != value}
        tried = _tried(model, fit, new, wanted, prefix)
        fit = tried if tried is not None and tried.misfits <= fit.misfits else fit
    for edits in [*_number_edits(config, numbers), *_unset_edits(config, numbers)]:
        if not fit.misfits:
            break
        tried = _tried(model, fit, edits, wanted, prefix)
        fit = tried if tried is not None and tried.misfits < fit.misfits else fit
    return fit


def _tried(model: Any, fit: Fit, edits: Edits, wanted: Shapes, prefix: str) -> Fit | None:
    """None where no model can be built so."""
    config = copy.deepcopy(fit.config)
    # Configs and models refuse numbers that they cannot use in their own ways.
    with suppress(Exception):
        edit(config, edits)
        getattr(config, "validate", lambda: None)()
        return Fit(config, {**fit.edits, **edits}, _misfits(model, config, wanted, prefix))
    return None


def edit(config: Any, edits: Edits) -> None:
    """Put other values into the text part of `config`, in place."""
    for key, value in edits.items():
        setattr(config.get_text_config(), key, value)


def _misfits(model: Any, config: Any, wanted: Shapes, prefix: str) -> _Misfits:
    found = {n: s for n, s in shapes_of(build_on_meta(model, config)).items() if n.startswith(prefix)}
    wanted = {name: shape for name, shape in wanted.items() if name.startswith(prefix)}
    wrong: set[tuple[str, int | None]] = {(name, None) for name in found.keys() ^ wanted.keys()}
    for name in found.keys() & wanted.keys():
        if len(found[name]) != len(wanted[name]):
            wrong.add((name, None))
        else:
            wrong |= {(name, d) for d, (a, b) in enumerate(zip(found[name], wanted[name], strict=True)) if a != b}
    return frozenset(wrong)


def _number_edits(config: Any, numbers: Numbers) -> Iterator[Edits]:
    for key, value in _entries(config).items():
        if _is_number(value):
            yield from ({key: new} for new in numbers.get(value, ()))
        elif _is_list(value) and any(_is_number(v) and v in numbers for v in value):
            firsts = {old: new[0] for old, new in numbers.items()}
            yield {key: [firsts.get(v, v) if _is_number(v) else v for v in value]}


def _unset_edits(config: Any, numbers: Numbers) -> Iterator[Edits]:
    for key, value in _entries(config).items():
        if value is None:
            yield from ({key: new} for news in numbers.values() for new in news)


def _entries(config: Any) -> dict[str, Any]:
    """What the text part of a config holds, in a fixed order."""
    text = config.get_text_config()
    return {key: getattr(text, key) for key in sorted(text.to_dict()) if hasattr(text, key)}


def _is_number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def shorter_config(model: Any, wanted: Shapes, kept: Sequence[int], count: int) -> Any:
    """The config of `model` with the blocks at the positions `kept` of `count` alone.

    Counts of blocks become smaller and lists with one entry for each block shorter; where shapes still differ, so do
    positions of blocks, alone or in a list.

    Raises:
        UsageError: no such config builds a model with the shapes `wanted`.
    """
    entries = _entries(model.config)
    lists = {key: [value[i] for i in kept] for key, value in entries.items() if _is_list(value) and len(value) == count}
    counts = [key for key, value in entries.items() if _is_number(value) and value == count]
    shorter = [{key: len(kept), **lists} for key in counts] + ([lists] if lists else [])
    everything: _Misfits = frozenset({("", None)})
    fits = (_tried(model, Fit(model.config, {}, everything), edits, wanted, "") for edits in shorter)
    for fit in (fit for fit in fits if fit is not None):
        for edits in _moved_positions(entries, kept, count):
            tried = _tried(model, fit, edits, wanted, "") if fit.misfits else None
            fit = tried if tried is not None and tried.misfits < fit.misfits else fit
        if not fit.misfits:
            return fit.config
    raise UsageError(
        f"no config of {type(model).__name__} describes {len(kept)} of its {count} blocks: "
        "this family cannot lose these blocks"
    )


def _moved_positions(entries: Mapping[str, Any], kept: Sequence[int], count: int) -> Iterator[Edits]:
    """A number may say how many blocks at the beginning are of a kind, a list of numbers which ones are."""
    for key, value in entries.items():
        if _is_number(value) and 0 < value <= count:
            yield {key: sum(position < value for position in kept)}
        elif _is_list(value) and value and all(_is_number(v) and 0 <= v < count for v in value):
            yield {key: [kept.index(v) for v in value if v in kept]}


def _is_list(value: Any) -> bool:
    return isinstance(value, (list, tuple))
