"""The last word: a few points that a cheap proxy likes, judged by the divergence of the pruned model itself.

A proxy ranks well over the whole space and less well near its own best point, where its faults add up. So the best
quarter of the trials is thinned out to points far from each other, and the model decides among them, with RIA and RIA
with exponent 1 beside them where the space holds them: a search of the whole space never ends with coefficients that
its judge likes less than RIA's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from crepe.criteria.coefficients import Coefficients
from crepe.search.space import Space

# Share of the trials from which finalists are drawn.
_BEST = 0.25
# Plain RIA, and RIA with Wanda's exponent.
CORNERS = {"RIA": Coefficients(), "RIA, activation 1": Coefficients(activation=1.0)}


def finalists(trials: Sequence[Any], space: Space, count: int) -> list[Any]:
    """The best of the finished optuna `trials` and others of the best quarter, each as far as can be from those before.

    Distances are taken in shares of each range; another form or kernel counts as a tenth of a range.
    """
    ordered = sorted(trials, key=lambda t: (t.value, t.number))
    good = ordered[: max(1, round(len(ordered) * _BEST))]
    chosen = good[:1]
    while len(chosen) < min(count, len(good)):
        left = [t for t in good if t not in chosen]
        chosen.append(max(left, key=lambda t: (min(_distance(t.params, c.params, space) for c in chosen), -t.number)))
    return chosen


def _distance(one: dict[str, Any], other: dict[str, Any], space: Space) -> float:
    numbers = sum(((one[n] - other[n]) / (high - low)) ** 2 for n, (low, high) in space.continuous.items())
    return float(numbers + 0.01 * sum(one[n] != other[n] for n in space.categorical))


def decide(
    trials: Sequence[Any], space: Space, count: int, judge: Callable[[Coefficients], float]
) -> tuple[Coefficients, list[dict[str, Any]]]:
    """The finalist or corner that `judge` likes best, and what it said of each, best first."""
    found = {f"trial {t.number}": space.coefficients(t.params) for t in finalists(trials, space, count)}
    found |= {name: corner for name, corner in CORNERS.items() if space.holds(corner)}
    judged = [(name, judge(coefficients)) for name, coefficients in found.items()]
    # A value that is not finite comes last; with none finite, the proxy's best trial, which is the first, stays.
    judged.sort(key=lambda pair: pair[1] if math.isfinite(pair[1]) else math.inf)
    return found[judged[0][0]], [{"name": name, "judge": value} for name, value in judged]
