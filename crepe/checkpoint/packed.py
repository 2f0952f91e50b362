"""Packed files: what is written of a block, and what is checked of a file before its weights are read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from crepe.checkpoint.blocks import block_state, saved
from crepe.checkpoint.layouts import SUFFIXES, Layout
from crepe.checkpoint.modules import runs_packed
from crepe.checkpoint.packing import Packed, pack, size_of
from crepe.errors import CrepeError
from crepe.masks import Mask
from crepe.models.blocks import Block
from crepe.models.views import View

# The names of dtypes in the header of a safetensors file, for the parts that have one of their own.
_STORED_AS = {torch.int32: "I32", torch.uint8: "U8"}
# Those of kept values.
_FLOATS = ("BF16", "F16", "F32", "F64")


@dataclass(frozen=True)
class PackedReport:
    """What became of one pruned parameter in a packed file.

    layout: its entry in config.json, None where it stays dense. reason: why it has not the layout of its pattern.
    runs_packed: whether its layer multiplies with it as it lies; else it is unpacked when it is loaded.
    """

    layout: dict[str, Any] | None
    bytes: int
    dense_bytes: int
    reason: str | None = None
    runs_packed: bool = False


def packed_tensors(
    model: Any,
    block: Block,
    views: Sequence[View],
    masks: Mapping[str, Mask],
    lost: Mapping[str, str] | None = None,
) -> tuple[dict[str, Tensor], dict[str, PackedReport]]:
    """The tensors of a finished block, pruned ones packed, and a report of each pruned parameter.

    lost: by view, why its mask has not the pattern that it was selected for.

    Names are those in the model's memory (as with `save_original_format=False`), so that a tensor in the file is a
    parameter of the model, also where transformers would convert it.
    """
    by_parameter: dict[str, list[View]] = {}
    for view in views:
        by_parameter.setdefault(view.name.partition("[")[0], []).append(view)
    shared = set((getattr(model, "all_tied_weights_keys", None) or {}).values())
    written: dict[str, Tensor] = {}
    reports: dict[str, PackedReport] = {}
    for name, tensor in saved(model, block_state(model, block)).items():
        own = by_parameter.get(name, [])
        if not own or any(view.name not in masks for view in own):
            written[name] = tensor
        elif name in shared:
            written[name] = tensor
            reports[name] = PackedReport(None, size_of(tensor), size_of(tensor), "other parameters are tied to it")
        else:
            found = _packed(name, tensor, [masks[view.name] for view in own], own[0].transposed)
            written |= {name + suffix: part for suffix, part in found.tensors.items()}
            why = next((lost[view.name] for view in own if view.name in lost), None) if lost else None
            reports[name] = _report(found, why, size_of(tensor), own[0].owner)
    return written, reports


def _packed(name: str, weight: Tensor, masks: Sequence[Mask], transposed: bool) -> Packed:
    try:
        return pack(weight, masks, transposed)
    except CrepeError as error:
        raise CrepeError(f"cannot pack {name!r}: {error}") from error


def _report(found: Packed, lost: str | None, dense_bytes: int, owner: nn.Module) -> PackedReport:
    layout, reason = found.layout, found.reason or lost
    if layout is None:
        return PackedReport(None, found.bytes, dense_bytes, reason)
    return PackedReport(layout.to_dict(), found.bytes, dense_bytes, reason, runs_packed(owner, layout))


def notes_of(reports: Mapping[str, PackedReport]) -> list[str]:
    """For people: which parameters became bitmaps instead of the layout of their pattern, one line for each reason."""
    by_reason: dict[str, list[str]] = {}
    for name, report in reports.items():
        if report.layout is not None and report.reason is not None:
            by_reason.setdefault(report.reason, []).append(name)
    return [
        f"stored as bitmaps, not in the layout of their pattern: {len(names)} of {len(reports)} parameters, such as "
        f"{names[0]}: {reason}"
        for reason, names in by_reason.items()
    ]


def sizes_of(folder: Path, reports: Mapping[str, PackedReport]) -> dict[str, Any]:
    """The entry `packed` of crepe.json: bytes of the weight files and of the pruned parameters, and as dense ones."""
    files = sum(file.stat().st_size for file in folder.glob("*.safetensors") if file.name != "masks.safetensors")
    own, dense = (sum(getattr(report, key) for report in reports.values()) for key in ("bytes", "dense_bytes"))
    return {
        "file_bytes": files,
        "dense_file_bytes": files + dense - own,
        "pruned_bytes": own,
        "dense_pruned_bytes": dense,
        "tensors": {
            name: {**asdict(report), "layout": report.layout["layout"] if report.layout else None}
            for name, report in reports.items()
        },
    }


def layouts_of(reports: Mapping[str, PackedReport]) -> dict[str, dict[str, Any]]:
    """The entries for config.json."""
    return {name: report.layout for name, report in reports.items() if report.layout is not None}


def check_parts(files: Sequence[str | Path], layouts: Mapping[str, Layout]) -> None:
    """Hold what the headers of the files say against the layouts, before any weight is read.

    Raises:
        CrepeError: a file is cut short, or a tensor is missing, has another shape or dtype, or belongs to no layout.
    """
    found: dict[str, tuple[tuple[int, ...], str]] = {}
    for file in files:
        found |= _header(Path(file))
    for name, layout in layouts.items():
        for suffix, (shape, dtype) in layout.parts().items():
            if name + suffix not in found:
                raise CrepeError(f"the packed checkpoint lacks {name + suffix!r}: download or copy it again")
            own, stored = found[name + suffix]
            wanted = (_STORED_AS[dtype],) if dtype else _FLOATS
            if own != shape or stored not in wanted:
                raise CrepeError(
                    f"packed tensor {name + suffix!r} is {own} of {stored}, its layout in config.json wants {shape} of "
                    f"{' or '.join(wanted)}"
                )
        for suffix in set(SUFFIXES) - set(layout.suffixes):
            if name + suffix in found:
                raise CrepeError(
                    f"the file has {name + suffix!r}, of which layout {layout.name} in config.json knows nothing: one "
                    "of the two is damaged"
                )


def _header(file: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and dtype of every tensor of a safetensors file, without reading one."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as opened:
            slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118
            return {name: (tuple(found.get_shape()), str(found.get_dtype())) for name, found in slices.items()}
    except (SafetensorError, OSError) as error:
        raise CrepeError(f"{file} is truncated or corrupt ({error}): download or copy it again") from error
