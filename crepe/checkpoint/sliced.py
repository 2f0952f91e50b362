"""Sliced checkpoints: the removed units are cut out, so that the matrices are really smaller.

Where one config describes the result, it is an ordinary checkpoint. Else the config carries `quantization_config` with
`quant_method: crepe`, the shapes of the parameters, and for each layer the keys in which it differs (the schema of
transformers' `per_layer_config`); `resize_for` makes a model fit before its weights are loaded.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from crepe.checkpoint.blocks import checkpoint_tensors
from crepe.checkpoint.files import save_tensors
from crepe.checkpoint.names import own_name, own_names
from crepe.checkpoint.reshape import Numbers, build_on_meta, edit, fit_config, shapes_of, shorter_config
from crepe.checkpoint.section import VERSION, are_sizes
from crepe.errors import CrepeError, UsageError
from crepe.models.blocks import Block, find_blocks


@dataclass(frozen=True)
class Slices:
    """What is cut out of a model.

    kept: by block, `NAME@DIM` -> positions that stay (n,) or, for a tensor of experts, (experts, n); units: by block,
    the counts of its units (see `crepe.pipeline.units.records_of`); stays: the blocks that are kept.
    """

    kept: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    units: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    stays: Mapping[str, bool] = field(default_factory=dict)

    def widths(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        """The shapes of all parameters after cutting."""
        found = {name: list(shape) for name, shape in shapes.items()}
        for cuts in self.kept.values():
            for key, positions in cuts.items():
                name, _, dim = key.rpartition("@")
                found[name][int(dim)] = positions.shape[-1]
        return {name: tuple(shape) for name, shape in found.items()}


@dataclass(frozen=True)
class Described:
    """The config of a sliced model. changed: keys that differ for all layers, or by layer where `per_layer`;
    before, after: how many parameters the model had and has."""

    config: Any
    changed: Mapping[str, Any]
    before: int
    after: int
    per_layer: bool = False


def slice_tensors(state: Mapping[str, Tensor], kept: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a block without what is cut out; see `Slices.kept`."""
    result = dict(state)
    for key, positions in kept.items():
        name, _, dim = key.rpartition("@")
        result[name] = _cut(result[name], int(dim), positions.long())
    return result


def _cut(tensor: Tensor, dim: int, positions: Tensor) -> Tensor:
    positions = positions.to(tensor.device)
    if positions.dim() == 1:
        return tensor.index_select(dim, positions)
    return torch.stack([part.index_select(dim - 1, own) for part, own in zip(tensor, positions, strict=True)])


def slice_config(model: Any, blocks: Sequence[Block], slices: Slices) -> Described:
    """The config that describes `model` after cutting: one for all layers where there is one.

    Raises:
        UsageError: the model's family has no layers of such shapes.
    """
    if slices.stays:
        return _shortened(model, blocks, slices)
    shapes = shapes_of(model)
    wanted = slices.widths(shapes)
    fit = fit_config(model, wanted, _numbers(slices.units.values()), _head_sizes(slices.units.values()))
    if not fit.misfits:
        return Described(fit.config, fit.edits, _count(shapes), _count(wanted))
    per_layer: dict[str, dict[str, Any]] = {}
    attributes: dict[str, int] = {}
    for index, block in enumerate(blocks):
        records = slices.units[block.name]
        prefix = block.name + "."
        fit = fit_config(model, wanted, _numbers([records]), _head_sizes([records]), prefix)
        edits = fit.edits
        if fit.misfits:
            _require_resizable(model, fit.names, records)
            numbers = [record["attributes"] for record in records if record["attributes"] is not None]
            attributes |= {name: value for found in numbers for name, value in found.items()}
            # They were tried in the block as the model has it.
            edits = {} if numbers else edits
        if edits:
            per_layer[str(index)] = edits
    changed = {name: list(shape) for name, shape in wanted.items() if shape != shapes[name]}
    config = copy.deepcopy(model.config)
    config.quantization_config = {
        "quant_method": "crepe",
        "format": "sliced",
        "version": VERSION,
        "shapes": changed,
        "per_layer_config": per_layer,
        **({"attributes": attributes} if attributes else {}),
    }
    return Described(config, per_layer, _count(shapes), _count(wanted), per_layer=True)


def _shortened(model: Any, blocks: Sequence[Block], slices: Slices) -> Described:
    kept = [index for index, block in enumerate(blocks) if slices.stays[block.name]]
    names = new_names(blocks, slices.stays)
    wanted, shapes = {}, shapes_of(model)
    for name, shape in shapes.items():
        block = next((b.name for b in blocks if name.startswith(b.name + ".")), None)
        if block is None:
            wanted[name] = shape
        elif slices.stays[block]:
            wanted[names[block] + name[len(block) :]] = shape
    config = shorter_config(model, wanted, kept, len(blocks))
    old, new = (c.get_text_config().to_dict() for c in (model.config, config))
    changed = {key: value for key, value in new.items() if value != old.get(key)}
    return Described(config, changed, _count(shapes), _count(wanted))


def _count(shapes: Mapping[str, tuple[int, ...]]) -> int:
    return sum(math.prod(shape) for shape in shapes.values())


def new_names(blocks: Sequence[Block], stays: Mapping[str, bool]) -> dict[str, str]:
    """Names of the blocks that stay -> their names when the others are gone."""
    names: dict[str, str] = {}
    counts: dict[str, int] = {}
    for block in blocks:
        holder = block.name.rpartition(".")[0]
        if stays.get(block.name, True):
            names[block.name] = f"{holder}.{counts.get(holder, 0)}"
            counts[holder] = counts.get(holder, 0) + 1
    return names


def _numbers(records: Any) -> Numbers:
    """Numbers of the config that may change: units, the heads and the columns that they are, and what is left."""
    found: dict[int, list[int]] = {}
    for record in (record for block in records for record in block):
        for factor in dict.fromkeys((1, record["heads"], record["width"])):
            old, new = record["units"] * factor, record["kept"] * factor
            if old != new and new not in found.setdefault(old, []):
                found[old].append(new)
    return found


def _head_sizes(records: Any) -> list[dict[str, Any]]:
    """Sizes of heads that a config may imply by a division that would no longer come out right."""
    sizes = {record["width"] // record["heads"] for block in records for record in block if record["width"] > 1}
    return [{"head_dim": size} for size in sorted(sizes)]


def _require_resizable(model: Any, names: Sequence[str], records: Sequence[Mapping[str, Any]]) -> None:
    """Raises UsageError where no config gives parameters their shapes and they cannot be resized alone either."""
    for name in names:
        owner = model.get_submodule(name.rpartition(".")[0])
        known = isinstance(owner, nn.Linear) or _is_conv1d(owner)
        if not known or any(record["width"] > 1 and record["attributes"] is None for record in records):
            raise UsageError(
                f"no config of {type(model).__name__} describes {name!r} without the units that go: "
                "use --format dense, which leaves zeros in place"
            )


# Writing


def write_slices(
    work: Path, model: Any, blocks: Sequence[Block], slices: Slices, state: Callable[[int, Block], dict[str, Tensor]]
) -> list[Path]:
    """One file for each block that stays, in the form of the checkpoint. state: a pruned block's tensors by name."""
    names = new_names(blocks, slices.stays)
    paths = []
    for index, block in enumerate(blocks):
        if block.name in names:
            tensors = slice_tensors(state(index, block), slices.kept.get(block.name, {}))
            renamed = {names[block.name] + name[len(block.name) :]: tensor for name, tensor in tensors.items()}
            paths.append(work / f"sliced-{index:05d}.safetensors")
            save_tensors(paths[-1], checkpoint_tensors(model, renamed))
    return paths


# Loading


def resize_for(model: Any, data: Mapping[str, Any]) -> None:
    """Give `model`, on the meta device, the shapes of a sliced checkpoint, in place.

    data: the checkpoint's `quantization_config`. Layers with keys of their own are taken from a model that is built
    with these keys; what still differs is resized alone, with the numbers that `attributes` names.

    Raises:
        CrepeError: a later format, or shapes that do not come out.
    """
    if data.get("version", 0) > VERSION:
        raise CrepeError(f"this checkpoint is of sliced format {data['version']}, known is {VERSION}: update crepe")
    _check_entries(data, len(find_blocks(model)))
    donors: dict[str, list[Block]] = {}
    for index, edits in data["per_layer_config"].items():
        key = repr(sorted(edits.items()))
        if key not in donors:
            config = copy.deepcopy(model.config)
            edit(config, edits)
            donors[key] = find_blocks(build_on_meta(model, config))
        block = donors[key][int(index)]
        holder, _, place = block.name.rpartition(".")
        model.get_submodule(holder)[int(place)] = block.module
    present = shapes_of(model)
    wanted = {name: tuple(shape) for name, shape in own_names(model, data["shapes"], present).items()}
    for name, shape in wanted.items():
        if name not in present:
            raise CrepeError(f"config.json describes a tensor {name!r} that the model does not have")
        _resize(model, name, shape)
    places = dict(model.named_modules())
    for name, value in data.get("attributes", {}).items():
        path, _, attribute = name.rpartition(".")
        own = own_name(model, path, places)
        if own is not None and own not in places:
            raise CrepeError(f"config.json describes a module {path!r} that the model does not have")
        if own is not None:
            setattr(places[own], attribute, value)
    wrong = [name for name, shape in shapes_of(model).items() if shape != wanted.get(name, shape)]
    if wrong:
        raise CrepeError(f"{wrong[0]!r} cannot be given the shape {list(wanted[wrong[0]])} of the checkpoint")


def _check_entries(data: Mapping[str, Any], blocks: int) -> None:
    """Raises CrepeError where what config.json says of a sliced checkpoint cannot be read."""
    given = {"attributes": {}, **data}
    for key in ("per_layer_config", "shapes", "attributes"):
        if not isinstance(given.get(key), Mapping):
            raise CrepeError(
                f"config.json has {given.get(key)!r} as {key!r} of a sliced checkpoint: expected an object"
            )
    odd = [index for index in data["per_layer_config"] if index not in map(str, range(blocks))]
    if odd:
        raise CrepeError(f"config.json describes layer {odd[0]!r} of a sliced checkpoint: the model has {blocks}")
    for index, edits in data["per_layer_config"].items():
        if not isinstance(edits, Mapping):
            raise CrepeError(
                f"config.json has {edits!r} for layer {index!r} of a sliced checkpoint: expected an object"
            )
    for name, shape in data["shapes"].items():
        if not are_sizes(shape):
            raise CrepeError(f"config.json has {shape!r} as the shape of {name!r}: expected a list of sizes")


def _resize(model: Any, name: str, shape: tuple[int, ...]) -> None:
    path, _, attribute = name.rpartition(".")
    owner = model.get_submodule(path)
    old = getattr(owner, attribute)
    if tuple(old.shape) == shape:
        return
    setattr(owner, attribute, nn.Parameter(torch.empty(shape, dtype=old.dtype, device=old.device), requires_grad=False))
    set_sizes(owner, attribute)


def set_sizes(owner: Any, attribute: str) -> None:
    """Let a Linear or Conv1D say the shape of its weight, which has changed."""
    if attribute == "weight" and isinstance(owner, nn.Linear):
        owner.out_features, owner.in_features = owner.weight.shape
    elif attribute == "weight" and _is_conv1d(owner):
        owner.nx, owner.nf = owner.weight.shape


def _is_conv1d(module: nn.Module) -> bool:
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, Conv1D)
