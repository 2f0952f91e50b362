"""What a search works on: a model in memory, its matrices, their statistics, and the pattern to be pruned to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from torch import Tensor

from crepe.criteria.coefficients import Coefficients
from crepe.masks import apply_mask
from crepe.models.load import use_eager_experts
from crepe.models.views import View
from crepe.pipeline.dense import dense_sums
from crepe.pipeline.plan import Plan, make_plan
from crepe.pipeline.prune import scores, statistics_of
from crepe.pipeline.walk import OutOfOrder
from crepe.recipe import Choices
from crepe.search.sampled import ENTRIES, Sample


@dataclass
class Subject:
    """One model that proxies ask about coefficients.

    statistics: of every view, from `rows`; rows, held: (count, seqlen) calibration tokens, and others that the
    statistics have not seen; entries: weights per matrix on which sampled proxies work.
    """

    model: Any
    plan: Plan
    choices: Choices
    kernels: Sequence[int]
    statistics: dict[str, dict[str, Tensor]]
    rows: Tensor
    held: Tensor
    seed: int = 0
    entries: int = ENTRIES

    @cached_property
    def sample(self) -> Sample:
        norms = {name: found["norm"] for name, found in self.statistics.items()}
        return Sample(self.plan.views, norms, self.kernels, self.seed, self.entries)

    @cached_property
    def _dense(self) -> dict[str, Tensor]:
        return {view.name: view.matrix().clone() for view in self.plan.views}

    @contextmanager
    def masked(self, coefficients: Coefficients, views: Sequence[View] | None = None) -> Iterator[None]:
        """The model is pruned with `coefficients` inside (only `views`, where given) and dense again after.

        Whole matrices are scored anew: their sums and neighbourhoods together would need several times their memory.
        """
        choices = replace(self.choices, coefficients=coefficients)
        chosen = list(views or self.plan.views)
        dense = self._dense
        try:
            for view, score in scores(chosen, self.statistics, choices):
                kept = choices.pattern.select(score, choices.sparsity, choices.compare)
                view.matrix().copy_(apply_mask(dense[view.name], kept))
            yield
        finally:
            for view in chosen:
                view.matrix().copy_(dense[view.name])


def make_subject(
    model: Any, choices: Choices, rows: Tensor, held: Tensor, kernels: Sequence[int], seed: int = 0
) -> Subject:
    """Statistics of one dense pass over `rows`; `model` is in memory, on the device where it stays."""
    use_eager_experts(model)
    plan = make_plan(model, choices)
    device = next(model.parameters()).device
    rows, held = rows.to(device), held.to(device)
    try:
        sums = dense_sums(model, plan, rows)
    except OutOfOrder as error:
        plan = plan.as_one_block(model, choices, str(error))
        sums = dense_sums(model, plan, rows)
    return Subject(model, plan, choices, kernels, statistics_of(plan.views, sums), rows, held, seed)
