"""Perplexity on held-out calibration rows: the paper's baseline, which every cheaper proxy is measured by."""

from __future__ import annotations

import math

import torch

from crepe.criteria.coefficients import Coefficients
from crepe.eval.fidelity import negative_log_likelihood
from crepe.search.proxies.base import PROXIES, Proxy, Score
from crepe.search.subject import Subject


def _prepare(subject: Subject) -> Score:
    rows = subject.held

    def score(coefficients: Coefficients) -> float:
        with subject.masked(coefficients), torch.no_grad():
            found = [
                negative_log_likelihood(subject.model(input_ids=batch, use_cache=False).logits, batch)
                for batch in rows.split(4)
            ]
        return math.exp(float(sum(found)) / (rows.shape[0] * (rows.shape[1] - 1)))

    return score


PROXIES.add(
    "ppl", Proxy(_prepare, "a trial prunes the whole model and runs it over all held-out rows", runs_model=True)
)
