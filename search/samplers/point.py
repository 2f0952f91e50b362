"""Samplers that choose a whole point of the space at once."""

from __future__ import annotations

from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial

from crepe.search.samplers.base import claim, place
from crepe.search.space import Space


class PointSampler(BaseSampler):
    """Base of samplers that answer with a point: they fill `point` and know the space from the beginning."""

    def __init__(self, space: Space, seed: int) -> None:
        self.space = space
        self.seed = seed
        self._distributions: dict[str, BaseDistribution] = {
            **{name: FloatDistribution(*found) for name, found in space.continuous.items()},
            **{name: CategoricalDistribution(found) for name, found in space.categorical.items()},
        }

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        claim(study, trial)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self._distributions

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return self.point(study, trial, place(study, trial))

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        raise KeyError(f"{param_name} is no parameter of the space")

    def point(self, study: Study, trial: FrozenTrial, place: int) -> dict[str, Any]:
        """The parameters of the trial at `place`."""
        raise NotImplementedError
