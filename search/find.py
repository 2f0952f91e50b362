"""PHO: the search for CRePE coefficients, from the words of a user to a coefficient file (Park 2026)."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from crepe.calibration.tokens import digest
from crepe.criteria.coefficients import KINDS, Coefficients
from crepe.errors import CrepeError, UsageError
from crepe.recipe import Choices, Recipe, build, choose
from crepe.search.space import Space


@dataclass(frozen=True)
class Search:
    """How to search.

    patience: stop when so many trials in a row bring nothing better; check: how many trials to measure perplexity of.
    held: calibration rows kept from the statistics, for proxies that run the model on them.
    finalists: trials among which the proxy called judge decides at the end (see finalists.py); 0 for none.
    """

    proxy: str = "fisher"
    sampler: str = "tpe"
    trials: int = 200
    patience: int | None = None
    check: int = 0
    held: int = 8
    finalists: int = 10
    judge: str = "kl"
    storage: str | None = None
    space: Space = field(default_factory=Space)

    def __post_init__(self) -> None:
        for name in ("trials", "patience", "held"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise UsageError(f"{name} = {getattr(self, name)}: it must be at least 1")


@dataclass
class Found:
    """What a search found.

    value: the proxy of the coefficients found; reference: that of plain RIA; judged: what the judge said of each
    finalist, best first; checked: perplexities, if asked for.
    """

    coefficients: Coefficients
    value: float
    reference: float
    trials: int
    seconds_per_trial: float
    source: str
    study: Any = field(repr=False)
    seconds: float = 0.0
    judged: list[dict[str, Any]] = field(default_factory=list)
    checked: list[dict[str, float]] = field(default_factory=list)
    output: str | None = None


def find_coefficients(model: Any = None, output: str | Path | None = None, **fields: Any) -> Coefficients:
    """Find CRePE coefficients for a model and a pattern.

    Args:
        model: a Hub id, folder, .gguf file or alias; or a transformers model in memory, with tokenizer= or rows=.
        output: the coefficient file to write; may be left out.
        fields: fields of `crepe.recipe.Recipe`, of `Search` and of `Space`; groups=True for one set per kind of matrix.

    Raises:
        CrepeError: one line that says what was wrong and what to do (UsageError for wrong words).
    """
    return search(model, output, **fields).coefficients


def search(model: Any = None, output: str | Path | None = None, **fields: Any) -> Found:
    """`find_coefficients`, with everything that was learned on the way."""
    started = time.perf_counter()
    how, rest = _split(fields)
    tokenizer, rows = rest.pop("tokenizer", None), rest.pop("rows", None)
    overwrite = rest.pop("overwrite", False)
    by_name = model is None or isinstance(model, (str, Path))
    name = model if by_name else getattr(model, "name_or_path", "") or type(model).__name__
    recipe = build({**rest, **({"model": str(name)} if name else {})})
    _require_searchable(recipe)
    choices = replace(choose(recipe), coefficients=Coefficients())
    _look_up(how)
    _require_writable(output, overwrite)
    if by_name:
        about, model, rows = _open(how, recipe)
    else:
        about, rows = _about_object(how, recipe, model), _rows(how, recipe, model, tokenizer) if rows is None else rows
    found = _in_evaluation_mode(
        model, lambda: _search(how, choices, model, rows, {**about, "rows": digest(rows.cpu())})
    )
    found.seconds = time.perf_counter() - started
    if output is not None:
        _write(found, Path(output))
    return found


def _in_evaluation_mode(model: Any, run: Callable[[], Found]) -> Found:
    training = model.training
    try:
        model.eval()
        return run()
    finally:
        model.train(training)


# What a recipe says about everything but scores.
_MEANINGLESS = (
    "coefficients",
    "allocation",
    "bounds",
    "refine",
    "refit_steps",
    "pipeline",
    "format",
    "save_masks",
    "resume",
)


def _require_searchable(recipe: Recipe) -> None:
    """A search ranks scores; what a recipe does after that is none of its business, and is not ignored silently."""
    if recipe.method != "crepe":
        raise UsageError(f"method {recipe.method!r} has no coefficients: search is for crepe")
    if recipe.compare == "global":
        raise UsageError("compare = 'global' needs all scores at once: search with 'tensor' or 'row'")
    for key in _MEANINGLESS:
        if getattr(recipe, key) != getattr(Recipe(), key):
            raise UsageError(f"{key} = {getattr(recipe, key)!r} has no meaning in a search: leave it out")


def _split(fields: dict[str, Any]) -> tuple[Search, dict[str, Any]]:
    """The fields of the search and the space, and the others."""
    rest = dict(fields)
    groups = KINDS if rest.pop("groups", False) else ()
    of_space = {key: rest.pop(key) for key in Space.__dataclass_fields__ if key in rest}
    of_search = {key: rest.pop(key) for key in Search.__dataclass_fields__ if key in rest}
    return Search(**of_search, space=Space(**of_space, groups=groups)), rest


def _look_up(how: Search) -> None:
    from crepe.search.proxies import get_proxy
    from crepe.search.samplers import SAMPLERS

    get_proxy(how.proxy)
    get_proxy(how.judge)
    SAMPLERS.get(how.sampler)


def _require_writable(output: str | Path | None, overwrite: bool) -> None:
    if output is None:
        return
    path = Path(output)
    if path.suffix not in (".yaml", ".yml") or path.is_dir():
        raise UsageError(f"--output {path}: give the name of a .yaml file")
    for file in (path, path.with_suffix(".html")):
        if file.exists() and not overwrite:
            raise CrepeError(f"{file} exists: choose another --output, or replace it with --overwrite")
    path.absolute().parent.mkdir(parents=True, exist_ok=True)
    if not os.access(path.absolute().parent, os.W_OK):
        raise CrepeError(f"cannot write below {path.absolute().parent}: choose another --output")


def _open(how: Search, recipe: Recipe) -> tuple[dict[str, Any], Any, Tensor]:
    """What the study is about, the model in memory, and its calibration rows."""
    from crepe.models.gguf import reading_once
    from crepe.models.load import load_tokenizer, open_model, parse_device, require_length
    from crepe.pipeline.fingerprint import run_fingerprint
    from crepe.pipeline.named import find_model
    from crepe.search.study import check_study

    device = parse_device(recipe.device)
    source = find_model(recipe)
    about = {**run_fingerprint(recipe, source, device), **_about(how), "source": source.name}
    if how.storage:
        check_study(Path(how.storage), about)  # a wrong journal is said before the model is read
    with reading_once():
        tokenizer = load_tokenizer(source, recipe.trust_remote_code)
        model = open_model(source, recipe.dtype, None, recipe.trust_remote_code, recipe.weights).to(device)
    require_length(model.config, recipe.seqlen)
    return about, model, _rows(how, recipe, model, tokenizer)


def _about(how: Search) -> dict[str, Any]:
    from importlib.metadata import version

    space = {f"space.{key}": list(getattr(how.space, key)) for key in Space.__dataclass_fields__}
    versions = {f"version.{name}": version(name) for name in ("optuna", "cmaes")}
    return {"proxy": how.proxy, "sampler": how.sampler, "held": _held(how), **space, **versions}


def _about_object(how: Search, recipe: Recipe, model: Any) -> dict[str, Any]:
    """As for a model by name, with a digest of the weights (the first of each tensor) for the files."""
    import hashlib

    from crepe.pipeline.fingerprint import recipe_entries

    weights = hashlib.sha256()
    for name, parameter in model.named_parameters():
        first = parameter.detach().flatten()[:64].float().cpu().numpy()
        weights.update(f"{name} {tuple(parameter.shape)}".encode() + first.tobytes())
    return {**recipe_entries(recipe), **_about(how), "weights": weights.hexdigest()}


def _held(how: Search) -> int:
    """Rows to keep from the statistics: none where nothing runs the model on them."""
    from crepe.search.proxies import get_proxy

    return how.held if get_proxy(how.proxy).runs_model or how.check or _has_final(how) else 0


def _has_final(how: Search) -> bool:
    """A proxy that is its own judge needs no second opinion."""
    return how.finalists > 0 and how.judge != how.proxy


def _rows(how: Search, recipe: Recipe, model: Any, tokenizer: Any) -> Tensor:
    from crepe.calibration.rows import make_rows

    return make_rows(replace(recipe, samples=recipe.samples + _held(how)), tokenizer, lambda: model)


def _open_study(how: Search, about: dict[str, Any]) -> Any:
    from crepe.search.samplers import SAMPLERS
    from crepe.search.study import open_study

    sampler = SAMPLERS.get(how.sampler)(how.space, about["recipe.seed"])
    return open_study(Path(how.storage) if how.storage else None, sampler, about)


def _search(how: Search, choices: Choices, model: Any, rows: Tensor, about: dict[str, Any]) -> Found:
    from crepe.search.finalists import decide
    from crepe.search.proxies import get_proxy
    from crepe.search.samplers.base import complete_trials
    from crepe.search.study import best_trial, finished_count, run_trials
    from crepe.search.subject import make_subject

    kept = len(rows) - _held(how)
    if kept < 1:
        raise UsageError(f"{len(rows)} rows are given and {how.held} are held out: give more rows, or lower held")
    subject = make_subject(model, choices, rows[:kept], rows[kept:], how.space.kernels, choices.recipe.seed)
    score = get_proxy(how.proxy).prepare(subject)
    study = _open_study(how, about)
    reference = score(Coefficients())
    taken: list[float] = []

    def timed(point: dict[str, Any]) -> float:
        began = time.perf_counter()
        value = score(how.space.coefficients(point))
        taken.append(time.perf_counter() - began)
        return value

    run_trials(study, how.space.suggest, timed, how.trials, how.patience)
    coefficients, judged = how.space.coefficients(best_trial(study).params), []
    if _has_final(how):
        coefficients, judged = decide(
            complete_trials(study), how.space, how.finalists, get_proxy(how.judge).prepare(subject)
        )
    value, trials = score(coefficients), finished_count(study)
    return Found(
        coefficients=replace(coefficients, origin=_origin(how, choices, value, trials, about)),
        value=value,
        reference=reference,
        trials=trials,
        seconds_per_trial=sum(taken) / max(1, len(taken)),
        source=about.get("source", choices.recipe.model),
        study=study,
        judged=judged,
        checked=check_with_perplexity(subject, how, study, score) if how.check else [],
    )


def _origin(how: Search, choices: Choices, value: float, trials: int, about: dict[str, Any]) -> dict[str, Any]:
    from crepe.checkpoint.manifest import package_version, published

    recipe = choices.recipe
    return {
        "model": about.get("source", recipe.model),
        "pattern": str(choices.pattern),
        "sparsity": choices.sparsity,
        "proxy": f"{how.proxy}, judged by {how.judge}" if _has_final(how) else how.proxy,
        "value": value,
        "sampler": how.sampler,
        "trials": trials,
        "seed": recipe.seed,
        "calibration": published(recipe.calibration),
        "versions": {name: package_version(name) for name in ("crepe-prune", "torch", "transformers", "optuna")},
    }


def check_with_perplexity(
    subject: Any, how: Search, study: Any, score: Callable[[Coefficients], float]
) -> list[dict[str, float]]:
    """Perplexity on the held-out rows for RIA (trial -1), and for trials spread evenly from the best to the worst."""
    from crepe.search.proxies import get_proxy
    from crepe.search.samplers.base import complete_trials

    perplexity = get_proxy("ppl").prepare(subject)
    done = sorted(complete_trials(study), key=lambda t: t.value)
    places = {round(i * (len(done) - 1) / max(1, how.check - 1)) for i in range(how.check)}
    checked = [{"trial": -1, "proxy": score(Coefficients()), "perplexity": perplexity(Coefficients())}]
    for place in sorted(places):
        trial = done[place]
        value = perplexity(how.space.coefficients(trial.params))
        checked.append({"trial": trial.number, "proxy": trial.value, "perplexity": value})
    return checked


def _write(found: Found, path: Path) -> None:
    from crepe.checkpoint.files import replacing

    with replacing(path) as fresh:
        found.coefficients.save(fresh)
    found.output = str(path)
