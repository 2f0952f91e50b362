"""The recipe: the whole frozen configuration of one run. Defaults < YAML < command line."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from crepe.errors import CrepeError, UsageError, unknown

PIPELINES = ("one-pass", "sequential")
FORMATS = ("dense", "packed", "sliced")
# Fields that only image models have.
IMAGE_FIELDS = (
    "macs",
    "filter_sparsity",
    "reorder_rows",
    "finetune",
    "optimizer",
    "learning_rate",
    "label_smoothing",
    "distill",
    "onnx",
)
# Where a run puts its result and how it speaks; the result itself does not depend on these.
_PLACE = ("output", "resume", "overwrite")


@dataclass(frozen=True)
class Recipe:
    """One run of `crepe prune`. Field names are the flags and the YAML keys (with `-` for `_` on the command line)."""

    model: str = ""
    output: str | None = None
    weights: str | None = None
    revision: str | None = None
    method: str = "crepe"
    pattern: str = "unstructured"
    sparsity: float | None = None
    round_to: int | None = None
    compare: str | None = None
    coefficients: str | None = None
    allocation: str = "uniform"
    bounds: tuple[str, ...] = ()
    refine: tuple[str, ...] = ()
    refit_steps: int = 96
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    calibration: str = "self"
    samples: int = 64
    seqlen: int = 512
    batch_size: int = 8
    seed: int = 0
    pipeline: str | None = None
    device: str = "auto"
    dtype: str = "auto"
    format: str = "dense"
    trust_remote_code: bool = False
    save_masks: bool = False
    macs: float | None = None
    filter_sparsity: float | None = None
    reorder_rows: bool = False
    finetune: int = 0
    optimizer: str = "sgd"
    learning_rate: float = 0.01
    label_smoothing: float = 0.1
    distill: float = 0.0
    onnx: bool = False
    resume: bool = False
    overwrite: bool = False

    def __post_init__(self) -> None:
        for name in ("bounds", "refine", "include", "exclude"):
            value = getattr(self, name)
            if isinstance(value, str):
                object.__setattr__(self, name, tuple(part.strip() for part in value.split(",") if part.strip()))
            else:
                object.__setattr__(self, name, tuple(value))

    @property
    def result_fields(self) -> dict[str, Any]:
        """Everything that decides the result."""
        return {key: value for key, value in asdict(self).items() if key not in _PLACE}


@dataclass(frozen=True)
class Choices:
    """A recipe's words turned into values once: what the pipeline works with."""

    recipe: Recipe
    criterion: Any
    pattern: Any
    sparsity: float
    compare: str
    coefficients: Any
    allocation: Any
    refinements: dict[str, Any] = field(default_factory=dict)

    @property
    def sequential(self) -> bool:
        """Whether each block sees what the pruned ones before it produce: as asked, else where anything is repaired,
        because repairs can make up for the errors that arrive."""
        asked = self.recipe.pipeline
        return asked == "sequential" if asked else bool(self.refinements)

    @property
    def fits_blocks(self) -> bool:
        """Whether blocks are fitted to the dense model's, which then has to walk beside the pruned one."""
        return any(found.sequential for found in self.refinements.values())

    @property
    def structured(self) -> bool:
        """Whether whole units are removed: channels, heads or blocks."""
        from crepe.masks import Structured

        return isinstance(self.pattern, Structured)

    @property
    def round_to(self) -> int:
        """Of which number the units that stay in a layer are a multiple: as asked, else 8 for channels, because fast
        kernels want rows of 16 bytes, and 1 for heads."""
        if self.recipe.round_to is not None:
            return self.recipe.round_to
        return 8 if self.structured and self.pattern.unit == "channel" else 1

    @property
    def needs(self) -> frozenset[str]:
        """Statistics that criterion and refinements want."""
        wanted = [self.criterion.needs, *(found.needs for found in self.refinements.values())]
        if self.structured:  # what hangs together shows when the blocks run, and consumers lose a mean
            wanted.append(frozenset({"mean"}))
        return frozenset().union(*wanted)


def build(given: dict[str, Any], defaults: Mapping[str, Any] | None = None) -> Recipe:
    """Merge defaults, the YAML file named by `recipe`, and the given values.

    defaults: what to put in place of the fields' own defaults, for models that need others.

    Raises:
        UsageError: unknown keys, wrong types, or values outside their range. CrepeError: an unreadable file.
    """
    given = dict(given)
    named = given.pop("recipe", None)
    content = _read(named) if named else {}
    merged = {**(defaults or {}), **_for_pattern(content, given), **given}
    _require_known(merged, named)
    recipe = replace(Recipe(), **{key: _typed(key, value) for key, value in merged.items()})
    _require_ranges(recipe)
    asked = given.get("refit_steps", Recipe.refit_steps) != Recipe.refit_steps  # a recipe file's own may be left over
    if asked and "refit" not in recipe.refine:
        logging.getLogger("crepe").warning("refit_steps = %d does nothing without --refine refit", recipe.refit_steps)
    return recipe


def choose(recipe: Recipe) -> Choices:
    """Look every name of the recipe up; raises UsageError naming the first that does not exist or does not fit."""
    from crepe.allocation import ALLOCATIONS
    from crepe.criteria import CRITERIA
    from crepe.masks import parse_pattern
    from crepe.refine import REFINEMENTS

    _require_language(recipe)
    criterion = CRITERIA.get(recipe.method)
    pattern = parse_pattern(recipe.pattern)
    sparsity = _sparsity(recipe, pattern)
    compare = recipe.compare or criterion.compare
    refinements = {name: REFINEMENTS.get(name) for name in recipe.refine}
    for name, refinement in refinements.items():
        refinement.require_fit(name, pattern, compare)
    allocation = ALLOCATIONS.get(recipe.allocation)
    _require_consistent(recipe, pattern, refinements)
    _require_structured(recipe, pattern)
    return Choices(
        recipe, criterion, pattern, sparsity, compare, _coefficients(recipe, sparsity), allocation, refinements
    )


def _read(name: str) -> dict[str, Any]:
    import yaml

    from crepe.configs import names, read_yaml

    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        if name not in names("recipes"):
            raise unknown("recipe", name, names("recipes"))
        content = read_yaml(f"recipes/{name}.yaml")
    else:
        try:
            content = yaml.safe_load(path.read_text())
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise CrepeError(f"cannot read recipe {name}: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise UsageError(f"recipe {name}: expected a YAML mapping, found {type(content).__name__}")
    return {str(key).replace("-", "_"): value for key, value in content.items()}


def _for_pattern(content: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """A recipe file's content, with its section `structured` on top where whole units go: repairs that keep their
    mask."""
    content = dict(content)
    section = content.pop("structured", {})
    if not isinstance(section, dict):
        raise UsageError(f"structured = {section!r}: expected recipe keys for the patterns channel and head")
    pattern = str(given.get("pattern", content.get("pattern", Recipe.pattern)))
    return {**content, **section} if pattern in ("channel", "head") else content


def _require_known(values: dict[str, Any], source: str | None) -> None:
    known = [f.name for f in fields(Recipe)]
    for key in values:
        if key not in known:
            raise UsageError(f"{source or 'recipe'}: {unknown('key', key, known)}")


_TYPES = {f.name: str(f.type) for f in fields(Recipe)}


def _typed(key: str, value: Any) -> Any:
    kind = _TYPES[key].removesuffix(" | None")
    if value is None and _TYPES[key].endswith("None"):
        return None
    if kind == "tuple[str, ...]" and isinstance(value, (list, tuple, str)):
        return value
    if kind == "float" and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    expected = {"str": str, "int": int, "bool": bool}.get(kind)
    if expected and isinstance(value, expected) and not (expected is int and isinstance(value, bool)):
        return value
    raise UsageError(f"{key} = {value!r}: expected {kind}")


def _require_ranges(recipe: Recipe) -> None:
    if not recipe.model:
        raise UsageError("no model: give --model with a Hub id, a folder, a .gguf file or an alias such as llama")
    if recipe.sparsity is not None and not 0 <= recipe.sparsity < 1:
        raise UsageError(
            f"sparsity {recipe.sparsity:g} is not in 0 <= S < 1: give the share of weights to remove, such as 0.5"
        )
    if recipe.filter_sparsity is not None and not 0 <= recipe.filter_sparsity < 1:
        raise UsageError(
            f"filter_sparsity {recipe.filter_sparsity:g} is not in 0 <= S < 1: give the share of filters to remove"
        )
    for name in ("samples", "seqlen", "batch_size", "refit_steps", "round_to"):
        value = getattr(recipe, name)
        if value is not None and value < 1:
            raise UsageError(f"{name} = {value}: it must be at least 1")
    if recipe.seqlen < 2:
        raise UsageError(f"seqlen = {recipe.seqlen}: a row needs at least 2 tokens")
    if recipe.pipeline is not None:
        _require_choice("pipeline", recipe.pipeline, PIPELINES)
    _require_choice("format", recipe.format, FORMATS)
    _require_comparable(recipe)


def _require_language(recipe: Recipe) -> None:
    """Raises UsageError for fields that a language model has no use for."""
    for name in IMAGE_FIELDS:
        if getattr(recipe, name) != getattr(Recipe, name):
            raise UsageError(
                f"{name} = {getattr(recipe, name)!r}: only for image models, and this is none; leave it out"
            )


def _require_comparable(recipe: Recipe) -> None:
    from crepe.masks.pattern import COMPARE

    if recipe.compare is None:
        return
    _require_choice("compare", recipe.compare, COMPARE)
    if recipe.pattern != "unstructured":
        raise UsageError(f"compare = {recipe.compare!r}: only for the unstructured pattern, not {recipe.pattern!r}")
    if recipe.compare == "global" and (recipe.pipeline == "sequential" or (recipe.refine and not recipe.pipeline)):
        raise UsageError("compare = 'global' needs the scores of all tensors at once: use --pipeline one-pass")


def _require_consistent(recipe: Recipe, pattern: Any, refinements: dict[str, Any]) -> None:
    """Raises UsageError for words that are each right and do not go together."""
    if recipe.allocation != "uniform" and pattern.fixed_sparsity is not None:
        raise UsageError(
            f"allocation {recipe.allocation!r} has nothing to divide: every tensor of pattern {pattern} has sparsity "
            f"{pattern.fixed_sparsity:g}; give alternatives, such as --pattern dense+{pattern}"
        )
    if recipe.compare == "global" and (recipe.allocation != "uniform" or recipe.bounds):
        raise UsageError("compare = 'global' divides the sparsity by itself: leave allocation and bounds out")
    fitting = [name for name, found in refinements.items() if found.sequential]
    if recipe.pipeline == "one-pass" and fitting:
        raise UsageError(
            f"refinement {fitting[0]!r} fits blocks to the inputs they will get: use --pipeline sequential"
        )
    if len(recipe.refine) != len(refinements):
        raise UsageError(f"refine = {','.join(recipe.refine)!r} names a refinement twice")


def _require_structured(recipe: Recipe, pattern: Any) -> None:
    """Raises UsageError for words that only go with whole units, and for those that do not go with whole blocks."""
    from crepe.masks import Structured

    if not isinstance(pattern, Structured):
        if recipe.format == "sliced":
            raise UsageError(f"format 'sliced' cuts whole units out: use it with channel, head or block, not {pattern}")
        if recipe.round_to is not None:
            raise UsageError(f"round_to = {recipe.round_to}: only for the patterns channel and head, not {pattern}")
        return
    if pattern.unit != "block":
        return
    if recipe.format != "sliced":
        raise UsageError("pattern 'block' takes whole blocks out of the model: use --format sliced")
    for name in ("refine", "allocation", "bounds", "round_to"):
        if getattr(recipe, name) != getattr(Recipe, name, ()):
            raise UsageError(f"{name} does not go with pattern 'block': blocks are kept as they are or removed whole")


def _require_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise unknown(name, value, choices)


def _sparsity(recipe: Recipe, pattern: Any) -> float:
    fixed: float | None = pattern.fixed_sparsity
    if fixed is None and recipe.sparsity == 0:
        raise UsageError("sparsity 0 removes nothing: give the share of weights to remove, such as 0.5")
    if fixed is None:
        return 0.5 if recipe.sparsity is None else recipe.sparsity
    if recipe.sparsity is not None and abs(recipe.sparsity - fixed) > 1e-9:
        raise UsageError(
            f"sparsity {recipe.sparsity} contradicts pattern {pattern}, which means {fixed:g}: leave it out"
        )
    return fixed


def _coefficients(recipe: Recipe, sparsity: float) -> Any:
    from crepe.criteria.coefficients import Coefficients
    from crepe.criteria.defaults import default_coefficients

    if recipe.coefficients:
        found = Coefficients.load(recipe.coefficients)
        made_for = found.origin.get("pattern", recipe.pattern)
        if made_for != recipe.pattern:
            logging.getLogger("crepe").warning(
                "%s was found for pattern %s; it is used for %s", recipe.coefficients, made_for, recipe.pattern
            )
        return found
    return default_coefficients(recipe.pattern, sparsity)
