"""Divergence of the pruned model's predictions from the dense model's, on held-out calibration rows."""

from __future__ import annotations

import torch

from crepe.criteria.coefficients import Coefficients
from crepe.eval.fidelity import kl_divergence
from crepe.search.proxies.base import PROXIES, Proxy, Score
from crepe.search.subject import Subject

_ROWS = 4


def _prepare(subject: Subject) -> Score:
    rows = subject.held[:_ROWS]
    with torch.no_grad():
        dense = [subject.model(input_ids=row, use_cache=False).logits for row in rows.split(1)]

    def score(coefficients: Coefficients) -> float:
        with subject.masked(coefficients), torch.no_grad():
            found = [
                kl_divergence(logits, subject.model(input_ids=row, use_cache=False).logits)
                for logits, row in zip(dense, rows.split(1), strict=True)
            ]
        return float(sum(found)) / (rows.shape[0] * (rows.shape[1] - 1))

    return score


PROXIES.add(
    "kl",
    Proxy(_prepare, "prepares 4 forward rows; a trial prunes the whole model and runs it over 4 rows", runs_model=True),
)
