"""The tuned numbers of the CRePE score and the YAML file that carries them."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from crepe.errors import CrepeError, UsageError, unknown

FORMS = ("context", "product", "relative")
# What a coefficient file may say about its origin; kept, never used in a score.
ORIGIN_KEYS = ("model", "pattern", "sparsity", "proxy", "trials", "seed", "versions", "note")


@dataclass(frozen=True)
class Coefficients:
    """Weights of the three terms, the neighbourhood's form and size, and the exponent of the activation norm."""

    row: float = 1.0
    column: float = 1.0
    neighbourhood: float = 0.0
    form: str = "context"
    kernel: int = 3
    activation: float = 0.5
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

    def save(self, path: str | Path) -> None:
        import yaml

        content = asdict(self)
        content.update(content.pop("origin"))
        Path(path).write_text(yaml.safe_dump(content, sort_keys=False))

    @classmethod
    def load(cls, path: str | Path) -> Coefficients:
        """Read a coefficient file.

        Raises:
            CrepeError: the file cannot be read. UsageError: unknown keys or impossible values.
        """
        return cls.from_dict(_read_yaml(path), str(path))

    @classmethod
    def from_dict(cls, content: dict[str, Any], source: str = "coefficients") -> Coefficients:
        known = {f.name: f.type for f in fields(cls) if f.name != "origin"}
        for key in content:
            if key not in known and key not in ORIGIN_KEYS:
                raise UsageError(f"{source}: {unknown('key', str(key), [*known, *ORIGIN_KEYS])}")
        values = {key: content[key] for key in known if key in content}
        try:
            numbers = {key: value if key == "form" else _NUMBER[known[key]](value) for key, value in values.items()}
        except (TypeError, ValueError) as error:
            raise UsageError(f"{source}: coefficients must be numbers: {error}") from None
        return cls(**numbers, origin={key: content[key] for key in ORIGIN_KEYS if key in content})


_NUMBER: dict[Any, type] = {"float": float, "int": int}


def _read_yaml(path: str | Path) -> dict[str, Any]:
    import yaml

    try:
        content = yaml.safe_load(Path(path).read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise CrepeError(f"cannot read coefficients from {path}: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise UsageError(f"{path}: expected a YAML mapping of coefficients, found {type(content).__name__}")
    return content
