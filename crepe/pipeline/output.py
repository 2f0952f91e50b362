"""The output folder around its weights: whether it may be written, checked before anything is touched, and what
describes it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from torch import Tensor

from crepe.checkpoint.manifest import manifest
from crepe.errors import CrepeError
from crepe.models.resolve import Source
from crepe.pipeline.journal import work_folder
from crepe.pipeline.result import Result
from crepe.recipe import Choices


def require_room(output: Path, source: Source) -> None:
    from crepe.checkpoint.write import ONE_FILE

    parent = output.absolute().parent
    try:
        parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(parent).free
    except OSError as error:
        raise CrepeError(f"cannot write below {parent}: {error}") from error
    size = sum(file.stat().st_size for file in source.folder.glob("*.safetensors")) if not source.gguf else 0
    written = sum(file.stat().st_size for file in work_folder(output).glob("block-*"))
    # The blocks, and where they are joined into one file, that file beside them.
    needed = size * (2 if size <= ONE_FILE else 1) - written
    if free < needed:
        raise CrepeError(
            f"{parent} has {free >> 20} MiB free, the output needs about {needed >> 20} MiB: free some space"
        )


def describe(
    final: Path, choices: Choices, source: Source, rows: Tensor | None, result: Result, fingerprint: dict[str, Any]
) -> None:
    """crepe.json, card and report."""
    from crepe.report.folder import write_report

    content = manifest(choices, source, rows, result, fingerprint)
    (final / "crepe.json").write_text(json.dumps(content, indent=2) + "\n")
    write_report(final)
