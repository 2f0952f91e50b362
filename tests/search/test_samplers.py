"""Every sampler: inside the space, better than nothing, and the same points whether resumed or not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from crepe.search.samplers import SAMPLERS
from crepe.search.space import Space
from crepe.search.study import best_trial, open_study, run_trials

NAMES = SAMPLERS.names()
SPACE = Space()


def _bowl(point: dict[str, Any]) -> float:
    value = (point["balance"] - 0.8) ** 2 + 4 * (point["neighbourhood"] - 0.1) ** 2 + (point["activation"] - 1.1) ** 2
    return float(value) + 0.05 * (point["form"] != "product") + 0.03 * (point["kernel"] != 5)


def _run(name: str, path: Path | None, parts: list[int], seed: int = 0) -> list[dict[str, Any]]:
    for trials in parts:
        study = open_study(path, SAMPLERS.get(name)(SPACE, seed), {"seed": seed})
        run_trials(study, SPACE.suggest, _bowl, trials, None)
    return [trial.params for trial in study.trials]


@pytest.mark.parametrize("name", NAMES)
def test_points_lie_in_the_space(name: str) -> None:
    for point in _run(name, None, [40]):
        for parameter, (low, high) in SPACE.continuous.items():
            assert low <= point[parameter] <= high
        for parameter, choices in SPACE.categorical.items():
            assert point[parameter] in choices


@pytest.mark.parametrize("name", NAMES)
def test_the_first_points_are_spread_over_the_space(name: str) -> None:
    first = _run(name, None, [14])
    for parameter, (low, high) in SPACE.continuous.items():
        values = [point[parameter] for point in first]
        assert max(values) - min(values) > 0.4 * (high - low)


@pytest.mark.parametrize("name", NAMES)
def test_ranges_whose_width_rounds_up(name: str) -> None:
    space = Space(activation=(0.03, 0.29))
    study = open_study(None, SAMPLERS.get(name)(space, 0), {})
    run_trials(study, space.suggest, lambda point: -float(point["activation"]), 60, None)
    assert len(study.trials) == 60


@pytest.mark.parametrize("name", NAMES)
def test_resumed_in_three_parts_gives_the_same_points(name: str, tmp_path: Path) -> None:
    whole = _run(name, tmp_path / "whole", [45])
    assert _run(name, tmp_path / "parts", [7, 29, 45]) == whole
    assert _run(name, None, [45], seed=1) != whole


@pytest.mark.parametrize("name", [n for n in NAMES if n != "random"])
def test_better_than_random(name: str) -> None:
    def best(sampler: str) -> float:
        values = []
        for seed in range(3):
            study = open_study(None, SAMPLERS.get(sampler)(SPACE, seed), {})
            run_trials(study, SPACE.suggest, _bowl, 120, None)
            values.append(best_trial(study).value or 0.0)
        return sorted(values)[1]

    assert best(name) < best("random") / 2
