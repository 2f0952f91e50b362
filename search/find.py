"""PHO: the search for CRePE coefficients, from the words of a user to a coefficient file (Park 2026)."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from crepe.calibration.tokens import digest
from crepe.criteria.coefficients import KINDS, Coefficients
from crepe.errors import CrepeError, UsageError
from crepe.masks.mixed import Dense
from crepe.masks.pattern import NofM, Pattern, Unstructured
from crepe.models.modes import evaluating
from crepe.models.wide import wide_products
from crepe.recipe import Choices, Recipe, build, choose
from crepe.search.about import about_object, about_search, origin_of
from crepe.search.how import Search
from crepe.search.space import Space


@dataclass
class Found:
    """What a search found.

    value: the proxy of the coefficients found; reference: that of plain RIA; judged: what the judge said of each
    finalist, best first; checked: perplexities, if asked for; cost: of the proxy, in words.
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
    cost: str = ""


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
    _require_single_weights(choices.pattern)
    _look_up(how)
    _require_writable(output, overwrite)
    if by_name:
        about, model, rows = _open(how, recipe)
    else:
        about, rows = about_object(how, recipe, model), _rows(how, recipe, model, tokenizer) if rows is None else rows
    with evaluating(model), _experts_kept(model), wide_products(next(model.parameters()).device):
        found = _search(how, choices, model, rows, {**about, "rows": digest(rows.cpu())})
    found.seconds = time.perf_counter() - started
    if output is not None:
        _write(found, Path(output))
    return found


@contextmanager
def _experts_kept(model: Any) -> Iterator[None]:
    """Afterwards experts compute as before."""
    experts = getattr(model.config, "_experts_implementation", None)
    try:
        yield
    finally:
        if experts != getattr(model.config, "_experts_implementation", None):
            model.set_experts_implementation(experts)


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


def _require_single_weights(pattern: Pattern) -> None:
    """A search works on rows drawn from every matrix, which say nothing of patterns that tie rows together."""
    if not all(isinstance(option, (Unstructured, NofM, Dense)) for option in pattern.alternatives):
        raise UsageError(f"pattern '{pattern}' removes more than single weights: search is for unstructured and N:M")


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
    about = {**run_fingerprint(recipe, source, device), **about_search(how), "source": source.name}
    if how.storage:
        check_study(Path(how.storage), about)  # a wrong journal is said before the model is read
    with reading_once():
        tokenizer = load_tokenizer(source, recipe.trust_remote_code)
        model = open_model(source, recipe.dtype, None, recipe.trust_remote_code, recipe.weights).to(device)
    require_length(model.config, recipe.seqlen)
    return about, model, _rows(how, recipe, model, tokenizer)


def _rows(how: Search, recipe: Recipe, model: Any, tokenizer: Any) -> Tensor:
    from crepe.calibration.rows import make_rows

    return make_rows(replace(recipe, samples=recipe.samples + how.rows_held), tokenizer, lambda: model)


def _open_study(how: Search, about: dict[str, Any]) -> Any:
    from crepe.search.samplers import SAMPLERS
    from crepe.search.study import open_study

    sampler = SAMPLERS.get(how.sampler)(how.space, about["recipe.seed"])
    return open_study(Path(how.storage) if how.storage else None, sampler, about)


def _search(how: Search, choices: Choices, model: Any, rows: Tensor, about: dict[str, Any]) -> Found:
    from crepe.search.check import check_with_perplexity
    from crepe.search.finalists import decide
    from crepe.search.proxies import get_proxy
    from crepe.search.samplers.base import complete_trials
    from crepe.search.study import best_trial, finished_count, run_trials
    from crepe.search.subject import make_subject

    kept = len(rows) - how.rows_held
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
    if how.judged_at_end:
        coefficients, judged = decide(
            complete_trials(study), how.space, how.finalists, get_proxy(how.judge).prepare(subject)
        )
    value, trials = score(coefficients), finished_count(study)
    return Found(
        coefficients=replace(coefficients, origin=origin_of(how, choices, value, trials, about)),
        value=value,
        reference=reference,
        trials=trials,
        seconds_per_trial=sum(taken) / max(1, len(taken)),
        source=about.get("source", choices.recipe.model),
        study=study,
        judged=judged,
        cost=get_proxy(how.proxy).cost,
        checked=check_with_perplexity(subject, how, study, score) if how.check else [],
    )


def _write(found: Found, path: Path) -> None:
    from crepe.checkpoint.files import replacing

    with replacing(path) as fresh:
        found.coefficients.save(fresh)
    found.output = str(path)
