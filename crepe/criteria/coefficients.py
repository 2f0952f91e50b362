"""The tuned numbers of the CRePE score and the YAML file that carries them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from crepe.errors import CrepeError, UsageError, unknown

FORMS = ("context", "product", "relative")
# Kinds of matrices that may have coefficients of their own.
KINDS = ("attention", "mlp")
# What a coefficient file may say about its origin; kept, never used in a score.
ORIGIN_KEYS = (
    "model",
    "pattern",
    "sparsity",
    "proxy",
    "value",
    "sampler",
    "trials",
    "seed",
    "calibration",
    "versions",
    "note",
)


@dataclass(frozen=True)
class Coefficients:
    """Weights of the three terms, the neighbourhood's form and size, and the exponent of the activation norm.

    groups: coefficients for kinds of matrices (see KINDS) that have their own.
    """

    row: float = 1.0
    column: float = 1.0
    neighbourhood: float = 0.0
    form: str = "context"
    kernel: int = 3
    activation: float = 0.5
    groups: dict[str, Coefficients] = field(default_factory=dict)
    origin: dict[str, Any] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        if self.form not in FORMS:
            raise unknown("neighbourhood form", str(self.form), FORMS)
        if self.kernel < 1 or self.kernel % 2 == 0:
            raise UsageError(f"coefficient kernel = {self.kernel}: the window needs an odd size of at least 1")
        for name in ("row", "column", "neighbourhood", "activation"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UsageError(f"coefficient {name} = {getattr(self, name)}: it must be 0 or more")
        if not self.row + self.column + self.neighbourhood > 0:
            raise UsageError("all coefficients are 0: at least one of row, column, neighbourhood must be positive")

    def of(self, kind: str) -> Coefficients:
        """The coefficients for matrices of `kind`."""
        return self.groups.get(kind, self)

    def to_dict(self) -> dict[str, Any]:
        """What a coefficient file holds: the numbers, those of groups, and the origin, each where there is one."""
        content = {name: getattr(self, name) for name in _TYPES}
        groups = {name: found.to_dict() for name, found in self.groups.items()}
        return {**content, **({"groups": groups} if groups else {}), **self.origin}

    def save(self, path: str | Path) -> None:
        import yaml

        Path(path).write_text(yaml.safe_dump(self.to_dict(), sort_keys=False))

    @classmethod
    def load(cls, path: str | Path) -> Coefficients:
        """Read a coefficient file.

        Raises:
            CrepeError: the file cannot be read. UsageError: unknown keys or impossible values.
        """
        return cls.from_dict(_read_yaml(path), str(path))

    @classmethod
    def from_dict(cls, content: dict[str, Any], source: str = "coefficients") -> Coefficients:
        if not isinstance(content, dict):
            raise UsageError(f"{source}: expected a YAML mapping of coefficients, found {type(content).__name__}")
        for key in content:
            if key not in _TYPES and key != "groups" and key not in ORIGIN_KEYS:
                raise UsageError(f"{source}: {unknown('key', str(key), [*_TYPES, 'groups', *ORIGIN_KEYS])}")
        try:
            numbers = {key: kind(content[key]) for key, kind in _TYPES.items() if key in content}
        except (TypeError, ValueError) as error:
            raise UsageError(f"{source}: coefficients must be numbers: {error}") from None
        origin = {key: content[key] for key in ORIGIN_KEYS if key in content}
        return cls(**numbers, groups=_groups(content.get("groups"), source), origin=origin)


_TYPES: dict[str, type] = {
    "row": float,
    "column": float,
    "neighbourhood": float,
    "form": str,
    "kernel": int,
    "activation": float,
}


def _groups(content: Any, source: str) -> dict[str, Coefficients]:
    found = {}
    if content is not None and not isinstance(content, dict):
        raise UsageError(f"{source}, groups: expected a YAML mapping, found {type(content).__name__}")
    for kind, values in (content or {}).items():
        if kind not in KINDS:
            raise UsageError(f"{source}: {unknown('kind of matrix', str(kind), KINDS)}")
        found[kind] = Coefficients.from_dict(values, f"{source}, group {kind}")
    return found


def _read_yaml(path: str | Path) -> Any:
    import yaml

    try:
        return yaml.safe_load(Path(path).read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise CrepeError(f"cannot read coefficients from {path}: {' '.join(str(error).split())}") from error
