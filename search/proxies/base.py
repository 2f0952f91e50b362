"""What a proxy is: a cheap number that stands for perplexity when coefficients are compared."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from crepe.criteria.coefficients import Coefficients
from crepe.registry import Registry
from crepe.search.subject import Subject

Score = Callable[[Coefficients], float]


@dataclass(frozen=True)
class Proxy:
    """prepare: does once what no trial changes, and gives the function of a trial: lower is better, above 0.

    cost: what preparing and a trial cost, for people; runs_model: needs rows that the statistics have not seen.
    """

    prepare: Callable[[Subject], Score]
    cost: str
    runs_model: bool = False


PROXIES: Registry[Proxy] = Registry("proxy", "crepe.search.proxies")


def get_proxy(name: str) -> Proxy:
    """The proxy called `name`; `a+b` is the geometric mean of several, so that their units do not matter."""
    parts = [PROXIES.get(part.strip()) for part in name.split("+")]
    if len(parts) == 1:
        return parts[0]

    def prepare(subject: Subject) -> Score:
        scores = [part.prepare(subject) for part in parts]
        return lambda coefficients: _geometric_mean([score(coefficients) for score in scores])

    return Proxy(prepare, "; ".join(part.cost for part in parts), any(part.runs_model for part in parts))


def _geometric_mean(values: list[float]) -> float:
    """NaN where a value is not above 0."""
    if not all(value > 0 for value in values):
        return math.nan
    return math.exp(sum(math.log(value) for value in values) / len(values))
