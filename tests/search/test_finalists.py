"""Finalists: far from each other, and a judge without an answer does not win."""

from __future__ import annotations

import math
from types import SimpleNamespace

from crepe.search.finalists import CORNERS, decide, finalists
from crepe.search.space import Space, random_points

SPACE = Space()
TRIALS = [
    SimpleNamespace(number=i, value=abs(point["activation"] - 1), params=point)
    for i, point in enumerate(random_points(SPACE, 80, 0))
]


def test_they_come_from_the_best_quarter_and_the_best_is_among_them() -> None:
    chosen = finalists(TRIALS, SPACE, 6)
    ordered = sorted(TRIALS, key=lambda t: t.value)
    assert len(chosen) == len({t.number for t in chosen}) == 6
    assert chosen[0] is ordered[0] and all(t in ordered[:20] for t in chosen)
    balances = [t.params["balance"] for t in chosen]
    assert max(balances) - min(balances) > 0.6


def test_never_worse_than_ria() -> None:
    corner = CORNERS["RIA"]
    found, judged = decide(TRIALS, SPACE, 5, lambda c: 0.0 if c == corner else 1.0)
    assert found == corner and judged[0] == {"name": "RIA", "judge": 0.0} and len(judged) == 7


def test_a_narrow_space_is_not_left() -> None:
    space = Space(activation=(0.8, 0.9))
    points = random_points(space, 8, 0)
    trials = [SimpleNamespace(number=i, value=float(i), params=point) for i, point in enumerate(points)]
    names = {entry["name"] for entry in decide(trials, space, 5, lambda c: c.activation)[1]}
    assert all(name.startswith("trial") for name in names)


def test_a_judge_without_an_answer_does_not_win() -> None:
    best = SPACE.coefficients(min(TRIALS, key=lambda t: t.value).params)
    found, judged = decide(TRIALS, SPACE, 5, lambda c: math.nan if c == best else c.row)
    assert found != best and math.isnan(judged[-1]["judge"])
    assert decide(TRIALS, SPACE, 5, lambda c: math.nan)[0] == best
