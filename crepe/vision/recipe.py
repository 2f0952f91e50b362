"""What a recipe means for an image model: its defaults, and the words that make no sense there."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from crepe.configs import names
from crepe.errors import UsageError, unknown
from crepe.masks import ColBlock, parse_pattern
from crepe.recipe import Recipe, build
from crepe.vision.methods import METHODS, FilterPart, MaskPart, Method
from crepe.vision.repairs import REPAIRS
from crepe.vision.widths import RULES, Rule
from crepe.vision.widths.measured import TRIED

DEFAULTS: dict[str, Any] = {"method": "l2", "format": "sliced", "batch_size": 64, "samples": 256}
OPTIMIZERS = ("sgd", "adamw")
# Fields of language models, which must stay as they are.
_FOREIGN = ("pattern", "compare", "coefficients", "bounds", "refit_steps", "seqlen", "pipeline", "dtype")
_SPARSITY = 0.5


@dataclass(frozen=True)
class ImageChoices:
    """A recipe's words turned into values once. sparsity: share of channels to remove; macs: share of
    multiply-accumulates to keep, which then decides the sparsity."""

    recipe: Recipe
    method: Method
    rule: Rule
    sparsity: float
    macs: float | None

    @property
    def filter_sparsity(self) -> float:
        """Share of the channels to remove where another part of the method zeroes weights at `sparsity`."""
        return self.sparsity if self.recipe.filter_sparsity is None else self.recipe.filter_sparsity

    @property
    def needs_images(self) -> bool:
        return self.needs_evidence or bool(self.method.needs) or self.recipe.finetune > 0 or bool(self.recipe.refine)

    @property
    def needs_evidence(self) -> bool:
        return self.rule.needs_curves or "moments" in self.method.needs

    @property
    def needs_labels(self) -> bool:
        return "taylor" in self.method.needs or self.recipe.finetune > 0


def build_image(given: dict[str, Any]) -> Recipe:
    """Raises UsageError as `build` does, and for a shipped recipe, all of which are for language models."""
    if given.get("recipe") in names("recipes"):
        raise UsageError(
            f"recipe {given['recipe']!r} is for language models: name --method and --refine, or a YAML file of your own"
        )
    return build(given, DEFAULTS)


def choose_image(recipe: Recipe) -> ImageChoices:
    """Raises UsageError naming the first word that does not exist, or that an image model has no use for."""
    own = {field.name: field.default for field in fields(Recipe)}
    for name in (*_FOREIGN, "save_masks"):
        value = getattr(recipe, name)
        if value != own[name]:
            raise UsageError(f"{name} = {value!r}: not for image models, whose channels are removed; leave it out")
    method, rule = METHODS.get(recipe.method), RULES.get(recipe.allocation)
    _require_amounts(recipe, method, rule)
    _require_tiles(recipe, method)
    for name in recipe.refine:
        REPAIRS.get(name)
    if recipe.format == "packed":
        raise UsageError("format 'packed': for the weights of language models; image models are 'sliced' or 'dense'")
    _require_training(recipe)
    choices = ImageChoices(recipe, method, rule, _SPARSITY if recipe.sparsity is None else recipe.sparsity, recipe.macs)
    if choices.needs_images and recipe.calibration == "self":
        repair = f"refinement {recipe.refine[0]!r}" if recipe.refine else f"method {recipe.method!r}"
        repair = f"allocation {recipe.allocation!r}" if rule.needs_curves else repair
        what = "fine-tuning" if recipe.finetune else repair
        raise UsageError(f"{what} needs images: give --calibration with an image folder, a .parquet file or a Hub id")
    return choices


def _require_amounts(recipe: Recipe, method: Method, rule: Rule) -> None:
    if recipe.macs is not None and recipe.sparsity is not None:
        raise UsageError("sparsity and macs: each decides how much is removed; give one of them")
    if recipe.macs is not None and not 0 < recipe.macs <= 1:
        raise UsageError(f"macs = {recipe.macs}: give the share of multiply-accumulates to keep, such as 0.4")
    if recipe.macs is not None and any(isinstance(part, MaskPart) for part in method.parts):
        raise UsageError(f"macs: method {recipe.method!r} does not only remove channels; give --sparsity instead")
    for name in ("sparsity", "filter_sparsity") if rule.needs_curves else ():
        if (getattr(recipe, name) or 0) > TRIED[-1]:
            raise UsageError(
                f"{name} = {getattr(recipe, name)}: allocation {recipe.allocation!r} tries every layer up to "
                f"{TRIED[-1]}; ask for less, or for another allocation"
            )
    kinds = {type(part) for part in method.parts}
    if recipe.filter_sparsity is not None and not {MaskPart, FilterPart} <= kinds:
        raise UsageError(
            f"filter_sparsity: method {recipe.method!r} does not both zero weights and remove filters, as deprune-bh "
            "does; give --sparsity alone"
        )


def _require_tiles(recipe: Recipe, method: Method) -> None:
    tiled = [p for p in method.parts if isinstance(p, MaskPart) and isinstance(parse_pattern(p.pattern), ColBlock)]
    if recipe.reorder_rows and not tiled:
        raise UsageError(
            f"reorder_rows: method {recipe.method!r} has no tiles of rows; use it with bcbp or bcbp-vector"
        )
    # The costs are those of blocks in tiles of neighbouring rows: other tiles would be chosen by norms, unnoticed.
    if recipe.reorder_rows and any(part.score is not None for part in tiled):
        raise UsageError(
            f"reorder_rows: method {recipe.method!r} scores the tiles of neighbouring rows; use it with bcbp or "
            "bcbp-vector"
        )


def _require_training(recipe: Recipe) -> None:
    if recipe.finetune < 0:
        raise UsageError(f"finetune = {recipe.finetune}: give the number of epochs, 0 for none")
    if recipe.optimizer not in OPTIMIZERS:
        raise unknown("optimizer", recipe.optimizer, OPTIMIZERS)
    if recipe.learning_rate <= 0:
        raise UsageError(f"learning_rate = {recipe.learning_rate}: it must be above 0, such as 0.01")
    if not 0 <= recipe.label_smoothing < 1:
        raise UsageError(f"label_smoothing = {recipe.label_smoothing}: give a share such as 0.1")
    if not 0 <= recipe.distill < 1:
        raise UsageError(f"distill = {recipe.distill}: give the dense network's share of the loss, such as 0.9")
    if recipe.distill and not recipe.finetune:
        raise UsageError(f"distill = {recipe.distill}: it is a way to train; give --finetune with the number of epochs")
