"""From the finished blocks to a complete output folder, in one rename at the end."""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from crepe.checkpoint.blocks import checkpoint_tensors, masks_name, saved, shard_name, without_tied
from crepe.checkpoint.files import readable_as_usual, save_tensors
from crepe.checkpoint.section import write_section
from crepe.errors import CrepeError, UsageError
from crepe.models.blocks import Block
from crepe.models.onload import WeightStore

# Up to this size the checkpoint is one file; a larger one keeps a file per block.
ONE_FILE = 5 << 30
# Tensors outside the blocks are written alone from this size on: embeddings of large models.
_ALONE = 64 << 20


def assemble(
    work: Path,
    model: Any,
    blocks: Sequence[Block],
    store: WeightStore,
    section: dict[str, Any] | None = None,
    shards: Sequence[Path] | None = None,
    config: Any = None,
) -> Path:
    """Write weights and config below `work/final` and return that folder.

    section: `quantization_config` of a packed checkpoint; its tensors keep their names in memory.
    shards, config: what to write instead of the finished blocks in `work` and the model's own config.
    """
    shards = [work / shard_name(i) for i in range(len(blocks))] if shards is None else shards
    final = work / "final"
    shutil.rmtree(final, ignore_errors=True)
    final.mkdir()
    parts = [*_rest_files(work, model, blocks, store, section is None), *shards]
    try:
        if sum(part.stat().st_size for part in parts) <= ONE_FILE:
            concatenate(parts, final / "model.safetensors")
        else:
            _link_shards(parts, final)
        _save_config(model, final, config)
        if section is not None:
            write_section(final, section)
    except OSError as error:
        raise CrepeError(f"cannot write {final}: {error}; free some space and go on with --resume") from error
    return final


def require_replaceable(output: Path, model: Path) -> None:
    """Raises UsageError where the output is, or holds, the folder of the model, or is no output of crepe."""
    place = output.resolve()
    if model.resolve() == place or place in model.resolve().parents:
        raise UsageError(f"output {output} holds the model itself: choose another folder")
    if not output.is_dir() or (any(output.iterdir()) and not (output / "crepe.json").is_file()):
        raise UsageError(f"{output} exists and is no output of crepe: choose another output")


def publish(final: Path, output: Path, overwrite: bool) -> None:
    """Make `final` the output folder. A folder of that name is only ever replaced by a complete one: where that fails
    it is put back."""
    readable_as_usual(final)
    replaced = final.parent / "replaced"
    if replaced.exists() and not output.exists():
        replaced.rename(output)  # of a run that was killed between the two renames
    shutil.rmtree(replaced, ignore_errors=True)
    try:
        if output.exists() and overwrite:
            output.rename(replaced)
        os.rename(final, output)
    except BaseException:
        if replaced.exists():
            replaced.rename(output)
        raise
    shutil.rmtree(final.parent)


def _rest_files(work: Path, model: Any, blocks: Sequence[Block], store: WeightStore, converted: bool) -> list[Path]:
    """Everything outside the blocks: one file for the small tensors, one for each large one.

    converted: under the names of the checkpoint format instead of those in memory.
    """
    prefixes = tuple(block.name + "." for block in blocks)
    state = {} if blocks[0].name == "" else {n: t for n, t in model.state_dict().items() if not n.startswith(prefixes)}
    names = list(without_tied(model, state))
    large = [name for name in names if state[name].numel() * state[name].element_size() >= _ALONE]
    files = []
    for number, group in enumerate([[n for n in names if n not in large], *([n] for n in large)]):
        tensors = {n: store.mapped(n) if state[n].is_meta else state[n].detach() for n in group}
        if tensors:
            files.append(work / f"rest-{number:05d}.safetensors")
            save_tensors(files[-1], checkpoint_tensors(model, tensors) if converted else saved(model, tensors))
    return files


def concatenate(parts: Sequence[Path], target: Path) -> None:
    """Join safetensors files into one by copying bytes: no tensor is loaded."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for part in parts:
        entries, _, size = _read_header(part)
        for name, entry in entries.items():
            start, end = entry["data_offsets"]
            header[name] = {**entry, "data_offsets": [start + offset, end + offset]}
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(target, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for part in parts:
            with open(part, "rb") as source:
                source.seek(_read_header(part)[1])
                shutil.copyfileobj(source, file, 1 << 22)
        file.flush()
        os.fsync(file.fileno())


def _read_header(path: Path) -> tuple[dict[str, Any], int, int]:
    """Entries of a safetensors file, where its data begins, and how long the data is."""
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        entries = json.loads(file.read(length))
    entries.pop("__metadata__", None)
    return entries, 8 + length, path.stat().st_size - 8 - length


def _link_shards(parts: Sequence[Path], final: Path) -> None:
    """Keep the files as they are, under the names that transformers expects, with an index."""
    weight_map: dict[str, str] = {}
    total = 0
    for number, part in enumerate(parts, 1):
        name = f"model-{number:05d}-of-{len(parts):05d}.safetensors"
        os.link(part, final / name)
        entries, _, size = _read_header(part)
        weight_map.update(dict.fromkeys(entries, name))
        total += size
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (final / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))


def _save_config(model: Any, final: Path, config: Any = None) -> None:
    from transformers.dynamic_module_utils import custom_object_save

    if config is None:
        config = model.config
        if getattr(config, "quantization_config", None) is not None:
            del config.quantization_config
    config.dtype = str(model.dtype).removeprefix("torch.")
    config.architectures = [type(model).__name__]
    if type(model).__module__.startswith("transformers_modules"):
        custom_object_save(model, final, config=config)
    config.save_pretrained(final)
    if model.can_generate():
        model.generation_config.save_pretrained(final)


def combine_masks(work: Path, count: int, described: dict[str, Any], target: Path) -> None:
    """One mask file from those of the blocks. described: view name -> its report (shape, pattern)."""
    from safetensors.torch import load_file

    from crepe.masks.mask_set import save_packed

    packed: dict[str, Tensor] = {}
    for path in (work / masks_name(index) for index in range(count)):
        packed |= load_file(path) if path.exists() else {}  # a block whose matrices are all excluded has none
    save_packed(
        target, packed, {name: (described[name].shape, described[name].pattern) for name in packed if name in described}
    )
