"""Hill climbing, the baseline of the CRePE paper: a step from the best point so far, kept where it is better."""

from __future__ import annotations

from typing import Any

import numpy
from optuna.study import Study
from optuna.trial import FrozenTrial

from crepe.search.samplers.base import SAMPLERS, complete_trials, draw_seed
from crepe.search.samplers.point import PointSampler

# Trials at random before the first step, and the size of a step as a share of each range.
_START = 5
_STEP = 0.15
_SWITCH = 0.2


@SAMPLERS.register("hill-climb")
class HillClimb(PointSampler):
    """The best of five random points, then Gaussian steps of 15 % of each range; each choice is drawn again in 1 of 5.

    The paper names hill climbing without its details; these are ours.
    """

    def point(self, study: Study, trial: FrozenTrial, place: int) -> dict[str, Any]:
        source = numpy.random.default_rng(draw_seed(self.seed, place))
        done = complete_trials(study)
        if place < _START or not done:
            numbers = {name: float(source.uniform(*found)) for name, found in self.space.continuous.items()}
            return numbers | {name: _pick(source, found) for name, found in self.space.categorical.items()}
        best = min(done, key=lambda t: (t.value, t.number)).params
        point: dict[str, Any] = {}
        for name, (low, high) in self.space.continuous.items():
            point[name] = float(numpy.clip(best[name] + source.normal(0, _STEP * (high - low)), low, high))
        for name, found in self.space.categorical.items():
            point[name] = _pick(source, found) if source.random() < _SWITCH else best[name]
        return point


def _pick(source: numpy.random.Generator, choices: tuple[Any, ...]) -> Any:
    return choices[int(source.integers(len(choices)))]
