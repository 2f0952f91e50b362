"""What a sampler is: an optuna sampler whose every draw depends on the seed, the trial's place and what came before.

optuna does not store a sampler's random generator, so a resumed study would go another way than an undisturbed one.
Every draw here starts from a generator of its own, made from the seed and the trial's place in the study.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from crepe.registry import Registry
from crepe.search.space import Space

SamplerFactory = Callable[[Space, int], BaseSampler]
SAMPLERS: Registry[SamplerFactory] = Registry("sampler", "crepe.search.samplers")


WORKER = "worker"


def claim(study: Study, trial: FrozenTrial) -> None:
    """Say whose trial it is, before anything long begins."""
    study._storage.set_trial_user_attr(trial._trial_id, WORKER, f"{socket.gethostname()}:{os.getpid()}")


def place(study: Study, trial: FrozenTrial) -> int:
    """How many trials come before this one, without those that died: a repeated trial takes the place of the dead."""
    before = study.get_trials(deepcopy=False)[: trial.number]
    return sum(t.state != TrialState.FAIL for t in before)


def complete_trials(study: Study) -> list[FrozenTrial]:
    """Those that have a value."""
    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))


def ended_trials(study: Study) -> list[FrozenTrial]:
    """Those that came to an end, with a value or without one; not those that died."""
    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))


class Reseeded(BaseSampler):
    """An optuna sampler without state of its own, made anew for each trial from the seed and the trial's place."""

    def __init__(self, make: Callable[[int], BaseSampler], seed: int) -> None:
        self._make = make
        self._seed = seed
        self._now = make(seed)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        claim(study, trial)
        self._now = self._make(draw_seed(self._seed, place(study, trial)))

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self._now.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return self._now.sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self._now.sample_independent(study, trial, param_name, param_distribution)


def draw_seed(seed: int, place: int) -> int:
    """One 32-bit seed out of two numbers."""
    import numpy

    return int(numpy.random.SeedSequence([seed, place]).generate_state(1)[0])
