"""Packed to dense and back, without pruning again."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from crepe.checkpoint.blocks import shard_name
from crepe.checkpoint.files import save_tensors
from crepe.checkpoint.manifest import read_manifest
from crepe.checkpoint.packed import PackedReport, layouts_of, notes_of, packed_tensors, sizes_of
from crepe.checkpoint.section import packed_section, read_section
from crepe.checkpoint.write import assemble, publish, require_replaceable
from crepe.errors import CrepeError
from crepe.masks import ColBlock, Mask, Pattern, Unstructured, parse_pattern
from crepe.models.blocks import Block, find_blocks
from crepe.models.onload import WeightStore
from crepe.models.views import inventory

# What is made again, or belongs to the weights.
_OWN_FILES = ("config.json", "generation_config.json", "README.md", "report.html", "crepe.json")


def convert(folder: str | Path, output: str | Path, format: str, overwrite: bool = False) -> dict[str, Any]:
    """Write the model of `folder` to `output`, packed or dense; returns the sizes of both, and notes for people.

    Dense weights are those that the packed ones stand for, bit by bit. A dense folder must be an output of crepe,
    because its crepe.json has the patterns. The whole model is in memory.

    overwrite: replace an output of crepe that is there.

    Raises:
        CrepeError: the output exists, the folder cannot be read, or is in that format already. UsageError: what is to
            be replaced is no output of crepe, or holds `folder`.
    """
    from crepe.checkpoint.read import load

    folder, output = Path(folder), Path(output)
    _require_new(folder, output, overwrite)
    section = read_section(folder)
    if (format == "dense" and not section) or section.get("format") == format:
        raise CrepeError(f"{folder} is {format} already")
    if section.get("format") == "sliced":
        raise CrepeError(f"{folder} is sliced, with a width for each layer: it is dense already and cannot be packed")
    content = read_manifest(folder) if format == "packed" or (folder / "crepe.json").is_file() else None
    if content is not None and ("sliced" in content or content.get("kind") == "image-classification"):
        raise CrepeError(f"{folder} holds smaller dense matrices: there are no zeros to pack")
    model, tokenizer = load(str(folder))
    if getattr(model, "hf_quantizer", None) is not None:
        model.dequantize()
        # Those of the packed file, whose tensors have their names in memory; the default ones lead to the checkpoint's.
        del model._weight_conversions
    output.parent.mkdir(parents=True, exist_ok=True)
    place = Path(tempfile.mkdtemp(prefix=f"{output.name}.", dir=output.parent))
    try:
        final, reports = _written(model, content, place / "work", format)
        tokenizer.save_pretrained(final)
        _describe(folder, final, content, reports)
        publish(final, output, overwrite)
    finally:
        if not (place / "work" / "replaced").exists():  # else it is what was there, and could not be put back
            shutil.rmtree(place, ignore_errors=True)
    before, after = (sum(file.stat().st_size for file in where.glob("*.safetensors")) for where in (folder, output))
    sizes = {"bytes_before": before, "bytes": after}
    return {"output": str(output), "format": format, **sizes, "notes": notes_of(reports)}


def _require_new(folder: Path, output: Path, overwrite: bool) -> None:
    if not folder.is_dir():
        raise CrepeError(f"no folder {folder}: check the path")
    if output.exists() and not overwrite:
        raise CrepeError(f"{output} exists: choose another folder, or replace it with --overwrite")
    if output.exists():
        require_replaceable(output, folder)


def _written(
    model: Any, content: dict[str, Any] | None, work: Path, format: str
) -> tuple[Path, dict[str, PackedReport]]:
    if format == "packed" and content is not None:
        patterns = {name: about["pattern"] for name, about in content["tensors"].items()}
        return save_packed(model, patterns, work)
    model.save_pretrained(work / "final")
    return work / "final", {}


def save_packed(model: Any, patterns: Mapping[str, str], work: Path) -> tuple[Path, dict[str, PackedReport]]:
    """Write a pruned model in memory below `work/final`. patterns: of its matrices, by the names of their views."""
    work.mkdir(parents=True)
    names = sorted({name.partition("[")[0] for name in patterns})
    tied = getattr(model, "all_tied_weights_keys", None) or {}
    blocks = find_blocks(model)
    if any(not name.startswith(tuple(block.name + "." for block in blocks)) for name in names):
        blocks = [Block("", model)]
    reports: dict[str, PackedReport] = {}
    for index, block in enumerate(blocks):
        views = [view for view in inventory(block, None, names, tied=tied).views if view.name in patterns]
        wanted = {view.name: parse_pattern(patterns[view.name]) for view in views}
        masks = {view.name: mask_of(view.matrix().cpu(), wanted[view.name]) for view in views}
        lost = {n: _why_lost(wanted[n]) for n, mask in masks.items() if mask.pattern != wanted[n]}
        tensors, own = packed_tensors(model, block, views, masks, lost)
        save_tensors(work / shard_name(index), tensors)
        reports |= own
    return assemble(work, model, blocks, WeightStore(model), packed_section(layouts_of(reports))), reports


def mask_of(weight: Tensor, pattern: Pattern) -> Mask:
    """The mask of a pruned matrix (out, in), by its zeros; without a pattern where its zeros do not follow it."""
    kept = weight != 0
    if isinstance(pattern, ColBlock) and pattern.obstacle(tuple(kept.shape)) is None:
        # A kept block may hold zeros of its own.
        kept = pattern.spread(pattern.blocks(kept.float()) > 0, len(kept))
    return Mask(kept, Unstructured() if pattern.violations(kept) else pattern)


def _why_lost(pattern: Pattern) -> str:
    return (
        f"its zeros do not follow {pattern} in the order in which its columns lie; a mask that was permuted alone does "
        "so only in an order of its own, which the dense weights do not keep"
    )


def _describe(folder: Path, final: Path, content: dict[str, Any] | None, reports: Mapping[str, PackedReport]) -> None:
    """crepe.json, card and report, and everything else that does not depend on how the weights are stored."""
    from crepe.report.folder import write_report

    for file in folder.iterdir():
        others = file.is_file() and file.name not in _OWN_FILES and not (final / file.name).exists()
        if others and file.suffix != ".safetensors" and not file.name.endswith(".index.json"):
            shutil.copy(file, final)
    if content is not None:
        content = {key: value for key, value in content.items() if key != "packed"}
        content |= {"packed": sizes_of(final, reports)} if reports else {}
        content["recipe"]["format"] = "packed" if reports else "dense"
        (final / "crepe.json").write_text(json.dumps(content, indent=2) + "\n")
        write_report(final)
