"""Second-order estimate of the divergence from the dense model: output errors weighted by what they do to the loss.

The divergence of a model from itself has no first-order term, and its curvature is the Fisher information F, so

    KL(dense || pruned) ~ 1/2 sum over matrices of vec(dW)^T F vec(dW),  per token.

F is taken as one block per matrix, and within it as the product of the Gram matrix of the inputs and the diagonal of
the output gradients' covariance (K-FAC, Martens and Grosse 2015, with a diagonal second factor):

    1/2 sum_i (sum_t g_ti^2) || dW_i X ||^2 / tokens^2

with g_ti the gradient of -log p(y_t) at output i for labels y_t that the model itself draws.
"""

from __future__ import annotations

import torch

from crepe.criteria.coefficients import Coefficients
from crepe.search.proxies.base import PROXIES, Proxy, Score
from crepe.search.proxies.recon import ROWS, row_errors, stack_sketches
from crepe.search.sketches import sketch_with_gradients
from crepe.search.subject import Subject


def _prepare(subject: Subject) -> Score:
    rows = subject.rows[:ROWS]
    found = sketch_with_gradients(subject.model, subject.plan.views, rows, subject.seed)
    parts = []
    for stack in subject.sample.stacks:
        energy = torch.stack([found.energies[name] for name in stack.names]).float()
        drawn = energy.gather(1, stack.rows)
        # The sampled rows stand for all rows of the matrix.
        scale = energy.shape[1] / drawn.shape[1]
        parts.append((stack_sketches(stack, found.sketches), drawn * (scale / (2 * rows.numel() ** 2))))

    def score(coefficients: Coefficients) -> float:
        masks = subject.sample.masks(coefficients, subject.choices)
        terms = [
            float((row_errors(stack.weight, mask, sketches) * weight).sum(dtype=torch.float64))
            for (stack, _, mask), (sketches, weight) in zip(masks, parts, strict=True)
        ]
        return sum(terms)

    return score


PROXIES.add(
    "fisher",
    Proxy(
        _prepare,
        "prepares sums and 8 forward and backward rows; a trial scores, selects and multiplies the sampled rows",
    ),
)
