"""What a study is about, so that no other is mistaken for it, and what its coefficient file says of its origin."""

from __future__ import annotations

from typing import Any

from crepe.recipe import Choices, Recipe
from crepe.search.how import Search
from crepe.search.space import Space


def about_search(how: Search) -> dict[str, Any]:
    """Flat names and values that the points and numbers of a study depend on."""
    from importlib.metadata import version

    space = {f"space.{key}": list(getattr(how.space, key)) for key in Space.__dataclass_fields__}
    versions = {f"version.{name}": version(name) for name in ("optuna", "cmaes")}
    return {"proxy": how.proxy, "sampler": how.sampler, "held": how.rows_held, **space, **versions}


def about_object(how: Search, recipe: Recipe, model: Any) -> dict[str, Any]:
    """As for a model by name, with a digest of the weights (the first of each tensor) for the files."""
    import hashlib

    from crepe.pipeline.fingerprint import recipe_entries

    weights = hashlib.sha256()
    for name, parameter in model.named_parameters():
        first = parameter.detach().flatten()[:64].float().cpu().numpy()
        weights.update(f"{name} {tuple(parameter.shape)}".encode() + first.tobytes())
    return {**recipe_entries(recipe), **about_search(how), "weights": weights.hexdigest()}


def origin_of(how: Search, choices: Choices, value: float, trials: int, about: dict[str, Any]) -> dict[str, Any]:
    """What stands beside the coefficients in their file."""
    from crepe.checkpoint.manifest import package_version, published

    recipe = choices.recipe
    return {
        "model": about.get("source") or published(recipe.model),
        "pattern": str(choices.pattern),
        "sparsity": choices.sparsity,
        "proxy": f"{how.proxy}, judged by {how.judge}" if how.judged_at_end else how.proxy,
        "value": value,
        "sampler": how.sampler,
        "trials": trials,
        "seed": recipe.seed,
        "calibration": published(recipe.calibration),
        "versions": {name: package_version(name) for name in ("crepe-prune", "torch", "transformers", "optuna")},
    }
