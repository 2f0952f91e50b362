"""What config.json says of a checkpoint that only crepe can read, and the guard that stops everybody else.

transformers only warns of a `quant_method` that it does not know and goes on with random weights. So config.json also
names a file of weights that cannot be one: whoever looks for weights stops there, and the error prints the name, which
says what to do. crepe takes that entry away when it loads the checkpoint.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from crepe.checkpoint.files import replacing

METHOD = "crepe"
# Raised when a reader of the older version would misread what is written.
VERSION = 1
GUARD = (
    "none, because only crepe can read this checkpoint: pip install crepe-prune, then `import crepe` before "
    "from_pretrained, or use crepe.load"
)


def packed_section(tensors: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """`quantization_config` of a packed checkpoint. tensors: name -> its layout."""
    return {"quant_method": METHOD, "format": "packed", "version": VERSION, "tensors": tensors}


def write_section(folder: Path, section: dict[str, Any]) -> None:
    """Put `section` and the guard into the config.json of `folder`."""
    extend_config(folder, {"quantization_config": section, "transformers_weights": GUARD})


def extend_config(folder: Path, entries: dict[str, Any]) -> None:
    """Put entries into the config.json of `folder` that transformers itself would not write."""
    path = folder / "config.json"
    config = json.loads(path.read_text()) | entries
    with replacing(path) as fresh:
        fresh.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def read_section(folder: Path) -> dict[str, Any]:
    """`quantization_config` of a folder's config.json, empty where there is none."""
    try:
        found = json.loads((folder / "config.json").read_text()).get("quantization_config")
    except (OSError, json.JSONDecodeError):
        return {}
    return found if isinstance(found, dict) else {}


def are_sizes(given: Any, least: int = 1) -> bool:
    """Whether an entry is a list of whole numbers, none under `least`."""
    return isinstance(given, list | tuple) and all(type(size) is int and size >= least for size in given)
