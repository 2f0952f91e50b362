"""CMA-ES, the paper's sampler, in the variant for mixed spaces (CatCMA with margin, Hamano et al. 2025).

optuna's own CmaEsSampler draws choices at random; the `cmaes` package behind it has a variant that learns them.
"""

from __future__ import annotations

import json
from typing import Any

import numpy
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from crepe.search.samplers.base import SAMPLERS, draw_seed, ended_trials
from crepe.search.samplers.point import PointSampler
from crepe.search.space import Space

_GENERATION = "cmaes:generation"
_SOLUTION = "cmaes:solution"


@SAMPLERS.register("cmaes")
class CmaEs(PointSampler):
    """The state is built up again from the finished trials of the study, so nothing but the study has to be kept."""

    def __init__(self, space: Space, seed: int) -> None:
        super().__init__(space, seed)
        self._optimizer: Any = None
        self._generation = 0

    def point(self, study: Study, trial: FrozenTrial, place: int) -> dict[str, Any]:
        self._learn(study)
        self._optimizer.reseed_rng(draw_seed(self.seed, place))
        solution = self._optimizer.ask()
        set_attribute = study._storage.set_trial_system_attr
        set_attribute(trial._trial_id, _GENERATION, self._generation)
        set_attribute(trial._trial_id, _SOLUTION, json.dumps([_numbers(solution.c), _numbers(solution._v_raw)]))
        return self._named(solution)

    def _learn(self, study: Study) -> None:
        """Tell the optimizer every generation that is complete, each of its first trials in order of number."""
        if self._optimizer is None:
            self._optimizer = _new_optimizer(self.space, self.seed)
        finished = ended_trials(study)
        while True:
            members = [t for t in finished if t.system_attrs.get(_GENERATION) == self._generation]
            size = self._optimizer.population_size
            if len(members) < size:
                return
            self._optimizer.tell([(self._solution(t), _value(t, finished)) for t in members[:size]])
            self._generation += 1

    def _solution(self, trial: FrozenTrial) -> Any:
        choices, raw = json.loads(trial.system_attrs[_SOLUTION])
        point = None if choices is None else numpy.array(choices)
        return self._optimizer.Solution(None, None, point, numpy.array(raw))

    def _named(self, solution: Any) -> dict[str, Any]:
        """The optimizer works on 0..1 and on one-hot rows; the study on values."""
        numbers = {
            name: min(high, low + (high - low) * float(share))
            for (name, (low, high)), share in zip(self.space.continuous.items(), solution.x, strict=True)
        }
        rows = [] if solution.c is None else solution.c
        choices = {
            name: found[int(numpy.argmax(row[: len(found)]))]
            for (name, found), row in zip(self.space.categorical.items(), rows, strict=True)
        }
        return numbers | choices


def _new_optimizer(space: Space, seed: int) -> Any:
    from cmaes import CatCMAwM

    return CatCMAwM(
        x_space=[[0.0, 1.0]] * len(space.continuous),
        c_space=[len(found) for found in space.categorical.values()] or None,
        mean=numpy.full(len(space.continuous), 0.5),
        # First steps of a sixth of each range, as optuna's CMA-ES has; the package's own matrix makes them far smaller.
        sigma=1 / 6,
        cov=numpy.eye(len(space.continuous)),
        seed=seed,
    )


def _value(trial: FrozenTrial, finished: list[FrozenTrial]) -> float:
    """A trial without a value counts as worse than the worst."""
    if trial.state == TrialState.COMPLETE and trial.value is not None:
        return trial.value
    return max((t.value for t in finished if t.value is not None), default=0.0) + 1.0


def _numbers(array: Any) -> Any:
    return None if array is None else array.tolist()
