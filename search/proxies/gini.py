"""The paper's proxy: how unequal the scores are. Higher inequality goes with lower perplexity, so 1 - Gini counts.

The paper does not say over which scores; all three are here, and docs/results/pho.md has what they are worth.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from crepe.criteria.coefficients import Coefficients
from crepe.search.proxies.base import PROXIES, Proxy, Score
from crepe.search.subject import Subject


def gini(values: Tensor) -> Tensor:
    """Gini coefficient of each row, (rows, n) -> (rows,): 0 = all equal, 1 = one has everything. Values >= 0.

    G = sum_i (2 i - n - 1) x_(i) / (n sum x), with x sorted upwards and i from 1 (Gini 1912). NaN where all are 0.
    """
    ordered = values.sort(dim=-1).values.double()
    count = values.shape[-1]
    weights = 2 * torch.arange(1, count + 1, device=values.device, dtype=torch.float64) - count - 1
    return (ordered @ weights) / (count * ordered.sum(-1))


def _proxy(choose: Callable[[Tensor, Tensor], Tensor]) -> Proxy:
    def prepare(subject: Subject) -> Score:
        def score(coefficients: Coefficients) -> float:
            chosen = [
                choose(scores.flatten(1), mask.flatten(1))
                for _, scores, mask in subject.sample.masks(coefficients, subject.choices)
            ]
            # A matrix whose scores are all 0 says nothing.
            parts = [gini(values[values.sum(1) != 0]) for values in chosen]
            return 1.0 - float(torch.cat(parts).mean())

        return score

    return Proxy(prepare, "prepares sums and neighbourhoods; a trial scores, selects and sorts the sampled rows")


def _where(scores: Tensor, mask: Tensor) -> Tensor:
    """The chosen scores of each matrix, (L, n) -> (L, chosen): every matrix of a stack keeps equally many."""
    return scores[mask].view(len(scores), -1)


PROXIES.add("gini", _proxy(_where))
PROXIES.add("gini-all", _proxy(lambda scores, mask: scores))
PROXIES.add("gini-pruned", _proxy(lambda scores, mask: _where(scores, ~mask)))
