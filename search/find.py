"""PHO: the search for CRePE coefficients, from the words of a user to a coefficient file (Park 2026)."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from crepe.criteria.coefficients import KINDS, Coefficients
from crepe.errors import CrepeError, UsageError
from crepe.recipe import Choices, Recipe, build, choose
from crepe.search.space import Space


@dataclass(frozen=True)
class Search:
    """How to search.

    patience: stop when so many trials in a row bring nothing better; check: how many trials to measure perplexity of.
    held: calibration rows kept from the statistics, for proxies that run the model on them.
    """

    proxy: str = "fisher"
    sampler: str = "tpe"
    trials: int = 200
    patience: int | None = None
    check: int = 0
    held: int = 32
    storage: str | None = None
    space: Space = field(default_factory=Space)

    def __post_init__(self) -> None:
        for name in ("trials", "patience", "held"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise UsageError(f"{name} = {getattr(self, name)}: it must be at least 1")


@dataclass
class Found:
    """What a search found. value: of the proxy; reference: the proxy of plain RIA; checked: perplexities, if asked."""

    coefficients: Coefficients
    value: float
    reference: float
    trials: int
    seconds: float
    seconds_per_trial: float
    source: str
    study: Any = field(repr=False)
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
    how, rest = _split(fields)
    tokenizer, rows = rest.pop("tokenizer", None), rest.pop("rows", None)
    overwrite = rest.pop("overwrite", False)
    by_name = model is None or isinstance(model, (str, Path))
    name = model if by_name else getattr(model, "name_or_path", "") or type(model).__name__
    recipe = build({**rest, **({"model": str(name)} if name else {})})
    if recipe.method != "crepe":
        raise UsageError(f"method {recipe.method!r} has no coefficients: search is for crepe")
    choices = replace(choose(recipe), coefficients=Coefficients())
    _look_up(how)
    _require_writable(output, overwrite)
    about: dict[str, Any] = {"recipe.seed": recipe.seed}
    if by_name:
        about, model, rows = _open(how, recipe)
    elif rows is None:
        rows = _rows(how, recipe, model, tokenizer)
    found = _search(how, choices, model, rows, about)
    if output is not None:
        _write(found, Path(output))
    return found


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
    SAMPLERS.get(how.sampler)


def _require_writable(output: str | Path | None, overwrite: bool) -> None:
    if output is None:
        return
    path = Path(output)
    if path.is_dir():
        raise UsageError(f"--output {path} is a folder: give the name of a YAML file")
    if path.exists() and not overwrite:
        raise CrepeError(f"{path} exists: choose another --output, or replace it with --overwrite")
    path.absolute().parent.mkdir(parents=True, exist_ok=True)
    if not os.access(path.absolute().parent, os.W_OK):
        raise CrepeError(f"cannot write below {path.absolute().parent}: choose another --output")


def _open(how: Search, recipe: Recipe) -> tuple[dict[str, Any], Any, Tensor]:
    """What the study is about, the model in memory, and its calibration rows."""
    from crepe.models.gguf import reading_once
    from crepe.models.load import load_tokenizer, open_model, parse_device, require_length
    from crepe.pipeline.fingerprint import run_fingerprint
    from crepe.pipeline.job import find_model

    device = parse_device(recipe.device)
    source = find_model(recipe)
    about = {**run_fingerprint(recipe, source, device), **_about(how), "source": str(source)}
    if how.storage:
        _open_study(how, about)  # a wrong journal is said before the model is read
    with reading_once():
        tokenizer = load_tokenizer(source, recipe.trust_remote_code)
        model = open_model(source, recipe.dtype, None, recipe.trust_remote_code, recipe.weights).to(device)
    require_length(model.config, recipe.seqlen)
    return about, model, _rows(how, recipe, model, tokenizer)


def _about(how: Search) -> dict[str, Any]:
    from importlib.metadata import version

    space = {f"space.{key}": list(getattr(how.space, key)) for key in Space.__dataclass_fields__}
    versions = {f"version.{name}": version(name) for name in ("optuna", "cmaes")}
    return {"proxy": how.proxy, "sampler": how.sampler, **space, **versions}


def _held(how: Search) -> int:
    """Rows to keep from the statistics: none where nothing runs the model on them."""
    from crepe.search.proxies import get_proxy

    return how.held if get_proxy(how.proxy).runs_model or how.check else 0


def _rows(how: Search, recipe: Recipe, model: Any, tokenizer: Any) -> Tensor:
    from crepe.calibration.rows import make_rows

    if tokenizer is None:
        raise UsageError("a model in memory needs tokenizer=, or rows= with calibration tokens (samples, seqlen)")
    return make_rows(replace(recipe, samples=recipe.samples + _held(how)), tokenizer, lambda: model)


def _open_study(how: Search, about: dict[str, Any]) -> Any:
    from crepe.search.samplers import SAMPLERS
    from crepe.search.study import open_study

    sampler = SAMPLERS.get(how.sampler)(how.space, about["recipe.seed"])
    return open_study(Path(how.storage) if how.storage else None, sampler, about)


def _search(how: Search, choices: Choices, model: Any, rows: Tensor, about: dict[str, Any]) -> Found:
    from crepe.search.proxies import get_proxy
    from crepe.search.study import best_trial, run_trials
    from crepe.search.subject import make_subject

    started = time.perf_counter()
    kept = len(rows) - _held(how)
    if kept < 1:
        raise UsageError(f"{len(rows)} rows are given and {how.held} are held out: give more rows, or lower held")
    subject = make_subject(model, choices, rows[:kept], rows[kept:], how.space.kernels, choices.recipe.seed)
    score = get_proxy(how.proxy).prepare(subject)
    study = _open_study(how, about)
    reference = score(Coefficients())
    trials_started, before = time.perf_counter(), len(study.trials)
    run_trials(study, how.space.suggest, lambda point: score(how.space.coefficients(point)), how.trials, how.patience)
    ended = time.perf_counter()
    best, done = best_trial(study), len(study.trials)
    return Found(
        coefficients=replace(how.space.coefficients(best.params), origin=_origin(how, choices, best, done, about)),
        value=float(best.value or 0.0),
        reference=reference,
        trials=done,
        seconds=ended - started,
        seconds_per_trial=(ended - trials_started) / max(1, done - before),
        source=about.get("source", choices.recipe.model),
        study=study,
        checked=check_with_perplexity(subject, how, study, score) if how.check else [],
    )


def _origin(how: Search, choices: Choices, best: Any, trials: int, about: dict[str, Any]) -> dict[str, Any]:
    from crepe.checkpoint.manifest import package_version, published

    recipe = choices.recipe
    return {
        "model": about.get("source", recipe.model),
        "pattern": str(choices.pattern),
        "sparsity": choices.sparsity,
        "proxy": how.proxy,
        "value": best.value,
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
    from optuna.trial import TrialState

    from crepe.search.proxies import get_proxy

    perplexity = get_proxy("ppl").prepare(subject)
    done = sorted(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)), key=lambda t: t.value)
    places = {round(i * (len(done) - 1) / max(1, how.check - 1)) for i in range(how.check)}
    checked = [{"trial": -1, "proxy": score(Coefficients()), "perplexity": perplexity(Coefficients())}]
    for place in sorted(places):
        trial = done[place]
        value = perplexity(how.space.coefficients(trial.params))
        checked.append({"trial": trial.number, "proxy": trial.value, "perplexity": value})
    return checked


def _write(found: Found, path: Path) -> None:
    """The file appears whole, or not at all."""
    fresh = path.with_name(path.name + ".new")
    found.coefficients.save(fresh)
    os.replace(fresh, path)
    found.output = str(path)
