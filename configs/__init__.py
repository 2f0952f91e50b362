"""Data of the project: model aliases, recipes, tuned coefficients. Read with `read_yaml` and `names`."""

from __future__ import annotations

from importlib import resources
from typing import Any


def read_yaml(path: str) -> Any:
    """Content of a YAML file below this folder, such as `recipes/fast.yaml`. Raises FileNotFoundError."""
    import yaml

    return yaml.safe_load(resources.files(__name__).joinpath(path).read_text(encoding="utf-8"))


def names(folder: str) -> list[str]:
    """Names of the YAML files in a folder, without the ending."""
    return sorted(f.name.removesuffix(".yaml") for f in resources.files(__name__).joinpath(folder).iterdir())
