"""crepe.json: everything needed to judge and to repeat a run."""

from __future__ import annotations

import json
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from torch import Tensor

from crepe.errors import CrepeError
from crepe.models.resolve import Source
from crepe.recipe import Choices

FORMAT = 1
_PACKAGES = ("crepe-prune", "torch", "transformers", "accelerate", "safetensors")


def manifest(
    choices: Choices, source: Source, rows: Tensor | None, result: Any, fingerprint: dict[str, Any]
) -> dict[str, Any]:
    """The content of crepe.json. Timings and peak memory are the only entries that differ between equal runs."""
    recipe = choices.recipe
    return {
        "format": FORMAT,
        "recipe": {key: published(value) for key, value in recipe.result_fields.items()},
        "coefficients": _coefficients(choices),
        "versions": {name: package_version(name) for name in _PACKAGES},
        "base_model": {
            "name": source.name,
            "asked": published(source.asked),
            "revision": source.revision,
            "gguf": source.gguf,
            "licence": source.licence,
        },
        "calibration": _calibration(choices, rows),
        "seed": recipe.seed,
        "sparsity": result.sparsity,
        "tensors": {name: report.to_dict() for name, report in result.tensors.items()},
        "fits": result.fits,
        **({"units": result.units} if result.units else {}),
        **({"sliced": result.sliced} if result.sliced else {}),
        "skipped": result.skipped,
        "notes": result.notes,
        **({"packed": result.packed} if result.packed else {}),
        "fingerprint": fingerprint,
        "timings": {"seconds": result.seconds},
        "peak_memory_bytes": result.peak_memory_bytes,
    }


def _coefficients(choices: Choices) -> dict[str, Any] | None:
    return choices.coefficients.to_dict() if choices.recipe.method == "crepe" else None


def _calibration(choices: Choices, rows: Tensor | None) -> dict[str, Any] | None:
    from crepe.calibration.tokens import digest

    if rows is None:
        return None
    samples, seqlen = rows.shape
    return {
        "source": published(choices.recipe.calibration),
        "samples": samples,
        "seqlen": seqlen,
        "sha256": digest(rows),
    }


def published(value: Any) -> Any:
    """A local path by its last part alone: cards and manifests are published, folders of a machine are not."""
    from pathlib import Path

    return Path(value).name if isinstance(value, str) and Path(value).expanduser().exists() else value


def package_version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def read_manifest(folder: Path) -> dict[str, Any]:
    """crepe.json of an output folder. Raises CrepeError where there is none."""
    try:
        content: dict[str, Any] = json.loads((folder / "crepe.json").read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise CrepeError(f"{folder} is no output of crepe prune: crepe.json is missing or broken ({error})") from error
    return content
