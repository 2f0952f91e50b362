"""Second-order estimate of the divergence from the dense model: output errors weighted by what they do to the loss.

The divergence of a model from itself has no first-order term, and its curvature is the Fisher information F, so

    KL(dense || pruned) ~ 1/2 sum over matrices of vec(dW)^T F vec(dW),  per token.

F is taken as one block per matrix. With g_t the gradient of -log p(y_t) at the matrix's outputs, for labels y_t that
the model itself draws, and x_t its inputs, the block is the mean over tokens of g_t g_t^T (x) x_t x_t^T. Outputs are
taken as uncorrelated, and a token's gradient energy as spread over them alike:

    1/2 sum_i b_i sum_t |g_t|^2 (dW_i x_t)^2 / tokens,    b_i = sum_t g_ti^2 / sum_t |g_t|^2.

That is K-FAC (Martens and Grosse 2015) with a diagonal second factor and tokens weighted by their gradient: a plain
Gram matrix is owned by the first token, whose inputs are huge and whose gradient is small.
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
        share = energy / energy.sum(1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
        # The sampled rows stand for all rows of the matrix.
        scale = energy.shape[1] / stack.rows.shape[1] / (2 * rows.numel())
        parts.append((stack_sketches(stack, found.sketches), share.gather(1, stack.rows) * scale))

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
