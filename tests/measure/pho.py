"""How well each proxy stands for perplexity, what the neighbourhood is worth, and what a search finds.

    python tests/measure/pho.py STAGE --model llama --calibration brown.jsonl --other wikitext2-valid.txt --folder DIR

Stages, each writing JSON lines into DIR and going on where it was stopped:
  points    perplexity on other text, and the proxies that run the whole model (kl, ppl), at 60 random points
  proxies   every cheap proxy at the same points, with its seconds per trial
  sampling  the fisher proxy with fewer and more sampled weights, and with all
  cost      seconds of a trial by fisher and by perplexity on 16,384 tokens, in one run
  ablation  the neighbourhood term with channels in order and shuffled, by form and kernel
  trials    200 trials of TPE on perplexity over 8 held-out rows: what a search without a proxy finds
  samplers  what 200 trials of each sampler find by fisher, three seeds
  gap       perplexity of that point, of RIA and of the shipped coefficients, on those rows and on the other text
  report    Markdown tables and scatter plots from what lies in DIR

Statistics come from 64 rows of 512 tokens of the calibration text, kl and ppl from other rows of it.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import crepe
from crepe.calibration.text import read_corpus
from crepe.calibration.tokens import packed_rows, windows
from crepe.criteria import Coefficients
from crepe.criteria.defaults import default_coefficients
from crepe.eval.fidelity import kl_divergence, negative_log_likelihood
from crepe.recipe import build, choose
from crepe.search.proxies import PROXIES, get_proxy
from crepe.search.space import Space, random_points
from crepe.search.subject import Subject, make_subject

PATTERNS = (("unstructured", 0.5), ("unstructured", 0.6), ("2:4", 0.5))
SPACE = Space()
POINTS = 60
WINDOWS = 8
HELD = 8
RIA = Coefficients()


class Bench:
    """One model, its statistics, and the texts; a subject per pattern."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.model, tokenizer = crepe.load(given.model, dtype="bfloat16")
        rows = packed_rows(tokenizer, read_corpus(given.calibration), 64 + HELD, 512, 0)
        self.other = windows(tokenizer, read_corpus(given.other), 512, given.windows)
        self.subject = make_subject(self.model, _choices("unstructured", 0.5), rows[:64], rows[64:], SPACE.kernels)

    def at(self, pattern: str, sparsity: float) -> Subject:
        found = replace(self.subject, choices=_choices(pattern, sparsity))
        for shared in ("sample", "_dense"):
            if shared in self.subject.__dict__:
                found.__dict__[shared] = self.subject.__dict__[shared]
        return found


def _choices(pattern: str, sparsity: float) -> Any:
    return choose(build({"model": "x", "pattern": pattern, "sparsity": sparsity}))


class Lines:
    """A JSON-lines file of measurements by key, which knows what it has already."""

    def __init__(self, path: Path) -> None:
        self.path = path
        text = path.read_text() if path.is_file() else ""
        self.found = {tuple(line["key"]): line for line in map(json.loads, text.splitlines())}

    def missing(self, *key: Any) -> bool:
        return key not in self.found

    def add(self, *key: Any, **values: Any) -> None:
        line = {"key": key, **values}
        self.found[key] = line
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")


def _points(seed: int) -> list[Coefficients]:
    return [RIA, *map(SPACE.coefficients, random_points(SPACE, POINTS, seed))]


def _logits(model: Any, rows: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    with torch.no_grad():
        for batch in rows.split(4):
            yield batch, model(input_ids=batch, use_cache=False).logits


def _perplexity(model: Any, rows: Tensor) -> float:
    total = sum(float(negative_log_likelihood(logits, batch)) for batch, logits in _logits(model, rows))
    return math.exp(total / (len(rows) * (rows.shape[1] - 1)))


def points(bench: Bench, folder: Path, seed: int) -> None:
    """The proxies kl and ppl share one forward over 4 held-out rows here; crepe.search runs them one by one."""
    lines = Lines(folder / f"points-{seed}.jsonl")
    held = bench.subject.held[:4]
    ((_, dense),) = _logits(bench.model, held)
    for pattern, sparsity in PATTERNS:
        subject = bench.at(pattern, sparsity)
        for index, coefficients in enumerate(_points(seed)):
            if not lines.missing(pattern, sparsity, index):
                continue
            with subject.masked(coefficients):
                other = _perplexity(bench.model, bench.other)
                ((_, logits),) = _logits(bench.model, held)
            count = held.shape[0] * (held.shape[1] - 1)
            kl = float(kl_divergence(dense, logits)) / count
            ppl = math.exp(float(negative_log_likelihood(logits, held)) / count)
            lines.add(pattern, sparsity, index, other=other, kl=kl, ppl=ppl)
            print(pattern, sparsity, index, f"{other:.2f}", flush=True)


def proxies(bench: Bench, folder: Path, seed: int) -> None:
    lines = Lines(folder / f"proxies-{seed}.jsonl")
    names = [name for name in PROXIES.names() if name not in ("kl", "ppl")]
    counts = Counter(key[:2] for key in Lines(folder / f"points-{seed}.jsonl").found)
    for pattern, sparsity in (pair for pair in PATTERNS if counts[pair] > POINTS):
        subject = bench.at(pattern, sparsity)
        for name in names:
            if not lines.missing(pattern, sparsity, name):
                continue
            subject.sample  # noqa: B018 - shared by all, so made before the clock runs
            start = time.perf_counter()
            score = get_proxy(name).prepare(subject)
            ready = time.perf_counter()
            values = [score(coefficients) for coefficients in _points(seed)]
            per_trial = (time.perf_counter() - ready) / len(values)
            lines.add(pattern, sparsity, name, values=values, prepare=ready - start, trial=per_trial)
            print(pattern, sparsity, name, f"{per_trial:.3f} s", flush=True)
        bench.subject.__dict__.setdefault("sample", subject.sample)


def sampling(bench: Bench, folder: Path, seed: int) -> None:
    lines = Lines(folder / f"sampling-{seed}.jsonl")
    for entries in (8192, 16384, 32768, 65536, 10**9):
        for pattern, sparsity in PATTERNS[:1] + PATTERNS[2:]:
            if not lines.missing(pattern, sparsity, entries):
                continue
            subject = replace(bench.at(pattern, sparsity), entries=entries)
            score = get_proxy("fisher").prepare(subject)
            start = time.perf_counter()
            values = [score(coefficients) for coefficients in _points(seed)]
            lines.add(pattern, sparsity, entries, values=values, trial=(time.perf_counter() - start) / len(values))
            print(pattern, sparsity, entries, flush=True)


def ablation(bench: Bench, folder: Path, seed: int) -> None:
    """Around RIA's best neighbour without a third term: row, column and exponent fixed, the neighbourhood varied."""
    from crepe.search.find import search

    lines = Lines(folder / "ablation.jsonl")
    for pattern, sparsity in PATTERNS:
        subject = bench.at(pattern, sparsity)
        base = lines.found.get((pattern, sparsity, "base"))
        if base is None:
            found = search(
                bench.model,
                rows=subject.rows,
                pattern=pattern,
                sparsity=sparsity,
                neighbourhood=(0.0, 1e-9),
                finalists=0,
            )
            lines.add(pattern, sparsity, "base", **found.coefficients.to_dict())
            base = lines.found[(pattern, sparsity, "base")]
        plain = Coefficients(row=base["row"], column=base["column"], activation=base["activation"])
        for label, coefficients, shuffle in _ablations(plain):
            if lines.missing(pattern, sparsity, label):
                with _shuffled(shuffle), subject.masked(coefficients):
                    lines.add(pattern, sparsity, label, other=_perplexity(bench.model, bench.other))
                print(pattern, sparsity, label, f"{lines.found[(pattern, sparsity, label)]['other']:.2f}", flush=True)


def _ablations(plain: Coefficients) -> Iterator[tuple[str, Coefficients, int | None]]:
    yield "RIA", RIA, None
    yield "no neighbourhood", plain, None
    yield "row term only", replace(plain, row=1.0, column=0.0), None
    yield "column term only", replace(plain, row=0.0, column=1.0), None
    for form in ("context", "product", "relative"):
        for kernel in (3, 5, 7):
            share = 0.1
            near = replace(plain, row=plain.row * (1 - share), column=plain.column * (1 - share))
            near = replace(near, neighbourhood=share, form=form, kernel=kernel)
            yield f"{form} {kernel} x {kernel}, in order", near, None
            if kernel == 3:
                for seed in (0, 1):
                    yield f"{form} {kernel} x {kernel}, shuffled {seed}", near, seed


@contextmanager
def _shuffled(seed: int | None) -> Iterator[None]:
    """Inside, the neighbourhood term sees rows and columns in a random order; everything else stays in place."""
    import crepe.criteria.crepe as module

    original, generator = module.neighbourhood_term, torch.Generator().manual_seed(seed or 0)

    def term(size: Tensor, form: str, kernel: int) -> Tensor:
        rows = torch.randperm(size.shape[0], generator=generator)
        columns = torch.randperm(size.shape[1], generator=generator)
        mixed = original(size[rows][:, columns].contiguous(), form, kernel)
        return mixed[rows.argsort()][:, columns.argsort()]

    if seed is not None:
        module.neighbourhood_term = term  # type: ignore[assignment]
    try:
        yield
    finally:
        module.neighbourhood_term = original


def cost(bench: Bench, folder: Path, seed: int) -> None:
    """Seconds per trial of fisher and of perplexity on 16,384 held-out tokens, in turns."""
    lines = Lines(folder / "cost.jsonl")
    subject = replace(bench.at("unstructured", 0.5), held=bench.subject.rows[:32])
    scores = {name: get_proxy(name).prepare(subject) for name in ("fisher", "ppl")}
    taken: dict[str, list[float]] = {name: [] for name in scores}
    for coefficients in _points(seed)[:4]:
        for name, score in scores.items():
            start = time.perf_counter()
            score(coefficients)
            taken[name].append(time.perf_counter() - start)
    # The first trial of each still makes what later ones share.
    means = {name: sum(times[1:]) / len(times[1:]) for name, times in taken.items()}
    lines.add("unstructured", 0.5, **means)
    print(means, f"ratio {means['ppl'] / means['fisher']:.0f}", flush=True)


def trials(bench: Bench, folder: Path, seed: int) -> None:
    from crepe.search.find import search

    lines = Lines(folder / "trials.jsonl")
    subject = bench.at("unstructured", 0.5)
    rows = torch.cat([subject.rows, subject.held])
    for pattern, sparsity in (("unstructured", 0.5), ("2:4", 0.5)):
        if lines.missing(pattern, sparsity):
            storage = str(folder / f"trials-{pattern.replace(':', '-')}-{sparsity}.journal")
            fields = {"pattern": pattern, "sparsity": sparsity, "proxy": "ppl", "storage": storage}
            found = search(bench.model, rows=rows, held=HELD, finalists=0, **fields)
            lines.add(pattern, sparsity, value=found.value, trial=found.seconds_per_trial, **_plain(found.coefficients))


def samplers(bench: Bench, folder: Path, seed: int) -> None:
    from crepe.search.samplers import SAMPLERS
    from crepe.search.study import best_trial, open_study, run_trials

    lines = Lines(folder / "samplers.jsonl")
    for pattern, sparsity in PATTERNS[:1] + PATTERNS[2:]:
        score = get_proxy("fisher").prepare(bench.at(pattern, sparsity))
        reference = score(RIA)
        for name in SAMPLERS.names():
            for number in range(3):
                if lines.missing(pattern, sparsity, name, number):
                    study = open_study(None, SAMPLERS.get(name)(SPACE, number), {})
                    run_trials(study, SPACE.suggest, lambda point: score(SPACE.coefficients(point)), 200, None)  # noqa: B023
                    best = best_trial(study)
                    lines.add(pattern, sparsity, name, number, value=best.value, ria=reference, **best.params)
                    print(pattern, sparsity, name, number, best.value, flush=True)


def gap(bench: Bench, folder: Path, seed: int) -> None:
    """Every point of `trials` beside RIA and what crepe prunes with by default."""
    lines = Lines(folder / "gap.jsonl")
    fields = ("row", "column", "neighbourhood", "form", "kernel", "activation")
    for (pattern, sparsity), found in Lines(folder / "trials.jsonl").found.items():
        subject = bench.at(pattern, sparsity)
        for name, coefficients in {
            "RIA": RIA,
            "200 trials of perplexity": Coefficients(**{key: found[key] for key in fields}),
            "shipped": default_coefficients(pattern, sparsity),
        }.items():
            with subject.masked(coefficients):
                held, other = _perplexity(bench.model, subject.held), _perplexity(bench.model, bench.other)
            lines.add(pattern, sparsity, name, held=held, other=other, windows=len(bench.other))
            print(pattern, sparsity, name, f"held {held:.2f}, other {other:.2f}", flush=True)


def _plain(coefficients: Coefficients) -> dict[str, Any]:
    return {key: value for key, value in coefficients.to_dict().items() if key not in ("value", "trials")}


STAGES = {
    "points": points,
    "proxies": proxies,
    "sampling": sampling,
    "ablation": ablation,
    "cost": cost,
    "trials": trials,
    "samplers": samplers,
    "gap": gap,
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("stage", choices=[*STAGES, "report"])
    parser.add_argument("--model", default="llama")
    parser.add_argument("--calibration")
    parser.add_argument("--other")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--windows", type=int, default=WINDOWS, help="of 512 tokens of the other text")
    parser.add_argument("--seed", type=int, default=1, help="of the random points")
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    if given.stage == "report":
        from pho_report import report

        report(given.folder, given.seed)
    else:
        STAGES[given.stage](Bench(given), given.folder, given.seed)


if __name__ == "__main__":
    main()
