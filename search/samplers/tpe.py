"""optuna's tree-structured Parzen estimator (Bergstra et al., NeurIPS 2011), over all parameters together."""

from __future__ import annotations

from optuna.samplers import BaseSampler, TPESampler

from crepe.search.samplers.base import SAMPLERS, Reseeded
from crepe.search.space import Space


@SAMPLERS.register("tpe")
def tpe(space: Space, seed: int) -> BaseSampler:
    return Reseeded(lambda drawn: TPESampler(seed=drawn), seed)
