"""Points drawn evenly: the baseline that every sampler has to beat."""

from __future__ import annotations

from optuna.samplers import BaseSampler, RandomSampler

from crepe.search.samplers.base import SAMPLERS, Reseeded
from crepe.search.space import Space


@SAMPLERS.register("random")
def random(space: Space, seed: int) -> BaseSampler:
    return Reseeded(lambda drawn: RandomSampler(seed=drawn), seed)
