"""The files of one finished block in the work folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from crepe.checkpoint.layouts import unpacked
from crepe.errors import CrepeError
from crepe.masks import Mask, MaskSet
from crepe.models.blocks import Block


def shard_name(index: int) -> str:
    return f"block-{index:05d}.safetensors"


def state_name(index: int) -> str:
    return f"block-{index:05d}.state.safetensors"


def masks_name(index: int) -> str:
    return f"block-{index:05d}.masks.safetensors"


def cuts_name(index: int) -> str:
    return f"block-{index:05d}.cuts.safetensors"


def block_files(model: Any, index: int, block: Block, masks: Mapping[str, Mask]) -> dict[str, dict[str, Tensor]]:
    """What to write of a finished block: file name -> tensors.

    The shard holds the names of the checkpoint format. Where these differ from the names in memory (fused experts
    are stored one by one), a second file keeps the block as it is in memory, for `--resume`.
    """
    state = block_state(model, block)
    converted = checkpoint_tensors(model, state)
    files = {shard_name(index): converted}
    if any(name not in converted or converted[name].shape != tensor.shape for name, tensor in state.items()):
        files[state_name(index)] = state
    if masks:
        files[masks_name(index)] = MaskSet(masks).packed()
    return files


def block_state(model: Any, block: Block) -> dict[str, Tensor]:
    """Tensors of the block under their names in the model, without those that are tied to another."""
    prefix = block.name + "." if block.name else ""
    state = {prefix + name: tensor.detach() for name, tensor in block.module.state_dict().items()}
    return without_tied(model, state)


def without_tied(model: Any, state: dict[str, Tensor]) -> dict[str, Tensor]:
    tied = getattr(model, "all_tied_weights_keys", None) or {}
    return {name: tensor for name, tensor in state.items() if name not in tied}


def saved(model: Any, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors that belong into a checkpoint, under their names in the model."""
    ignored = set(getattr(model, "_keys_to_ignore_on_save", None) or ())
    return {name: tensor for name, tensor in state.items() if name not in ignored}


def checkpoint_tensors(model: Any, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under the names and in the form in which `save_pretrained` writes them."""
    from transformers.core_model_loading import revert_weight_conversion

    converted: dict[str, Tensor] = revert_weight_conversion(model, saved(model, state))
    return {name: tensor.contiguous() for name, tensor in converted.items()}


def read_cuts(path: Path) -> dict[str, Tensor]:
    """What stays of the parameters of a finished block (`Slices.kept`); nothing is cut where there is no file."""
    from safetensors.torch import load_file

    found: dict[str, Tensor] = load_file(path) if path.exists() else {}
    return found


def finished_block(folder: Path, index: int) -> dict[str, Tensor]:
    """A finished block's tensors under their names in the model."""
    from safetensors.torch import load_file

    path = folder / state_name(index)
    found: dict[str, Tensor] = load_file(path if path.exists() else folder / shard_name(index))
    return found


def restore_block(folder: Path, index: int, block: Block, layouts: Mapping[str, Mapping[str, Any]]) -> None:
    """Load a finished block's pruned tensors into its onloaded module. layouts: of those that are packed."""
    tensors = unpacked(finished_block(folder, index), layouts)
    prefix = block.name + "." if block.name else ""
    own = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    with torch.no_grad():
        wrong = block.module.load_state_dict(own, strict=False)
    if wrong.unexpected_keys:
        place, name = folder / shard_name(index), wrong.unexpected_keys[0]
        raise CrepeError(f"{place} does not fit {block.name}: unexpected {name!r}; use --overwrite")
