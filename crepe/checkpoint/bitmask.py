"""Reading old checkpoints of compressed-tensors with sparse weights, which its newer versions no longer read.

Formats `sparse-24-bitmask` and `sparse-bitmask`: `X.weight` is `X.compressed`, the kept values row by row, `X.bitmask`,
(out, ceil(in / 8)) uint8 with bit i of byte b for column 8 b + i, and `X.shape`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from crepe.checkpoint.section import read_section
from crepe.errors import CrepeError
from crepe.masks.mask_set import unpack_bits
from crepe.models.load import check_files, load_config, parse_dtype, require_complete
from crepe.models.resolve import Source

FORMATS = ("sparse-24-bitmask", "sparse-bitmask")


def is_bitmask(folder: Path) -> bool:
    return (read_section(folder).get("sparsity_config") or {}).get("format") in FORMATS


def open_bitmask(source: Source, dtype: str = "auto") -> Any:
    """The model with dense weights, in evaluation mode.

    Raises:
        CrepeError: tensors that do not fit together, or weights that are quantised as well.
    """
    from transformers import AutoModelForCausalLM

    if read_section(source.folder).get("config_groups"):
        raise CrepeError(f"{source.name} is quantised as well as sparse: crepe reads sparse weights alone")
    check_files(source)
    config = load_config(source)
    del config.quantization_config
    with torch.device("meta"):
        kind = type(AutoModelForCausalLM.from_config(config))
    wanted = parse_dtype(dtype, source)
    state = read_bitmask(source.folder)
    model, report = kind.from_pretrained(None, config=config, state_dict=state, dtype=wanted, output_loading_info=True)
    require_complete(source, report)
    return model.eval().requires_grad_(False)


def read_bitmask(folder: Path) -> dict[str, Tensor]:
    """All tensors of the folder's safetensors files, sparse ones as dense ones."""
    from safetensors.torch import load_file

    tensors: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(file)
    for name in [name.removesuffix(".compressed") for name in tensors if name.endswith(".compressed")]:
        try:
            values, bits, shape = (tensors.pop(f"{name}.{part}") for part in ("compressed", "bitmask", "shape"))
        except KeyError as error:
            raise CrepeError(f"{folder} lacks {error}: download or copy it again") from None
        tensors.pop(f"{name}.row_offsets", None)
        tensors[f"{name.removesuffix('.weight')}.weight"] = _dense(name, values, bits, shape)
    return tensors


def _dense(name: str, values: Tensor, bits: Tensor, shape: Tensor) -> Tensor:
    out, inputs = (int(size) for size in shape.flatten())
    kept = unpack_bits(bits.flatten(), (out, -(-inputs // 8) * 8))[:, :inputs]
    if int(kept.sum()) != values.numel():
        raise CrepeError(f"{name!r} has {values.numel()} values for {int(kept.sum())} bits: the file is damaged")
    return torch.zeros(out, inputs, dtype=values.dtype).masked_scatter_(kept, values.flatten())
