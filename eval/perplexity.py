"""Token perplexity over fixed windows, and the distance to a reference model in the same pass."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from crepe.errors import CrepeError
from crepe.eval.fidelity import kl_divergence, negative_log_likelihood, top1_matches
from crepe.models.wide import wide_products
from crepe.progress import bar


def measure(model: Any, reference: Any | None, windows: Tensor) -> dict[str, Any]:
    """Perplexity of `model` over `windows` (count, length), window by window.

    Returns:
        token_perplexity and tokens (predicted ones); with a reference also reference_token_perplexity,
        kl_divergence (nats per token) and top1_agreement (0..1).

    Raises:
        CrepeError: the logits are NaN.
    """
    sums = {"model": 0.0, "reference": 0.0, "kl": 0.0, "top1": 0.0}
    device = next(model.parameters()).device
    with torch.no_grad(), wide_products(device), bar("evaluating", len(windows)) as advance:
        for row in windows.split(1):
            logits = _logits(model, row)
            sums["model"] += float(negative_log_likelihood(logits, row.to(logits.device)))
            if reference is not None:
                _compare(sums, _logits(reference, row), logits, row)
            advance()
    return _means(sums, windows.shape[0] * (windows.shape[1] - 1), reference is not None)


def _logits(model: Any, row: Tensor) -> Tensor:
    found: Tensor = model(input_ids=row.to(next(model.parameters()).device), use_cache=False).logits
    return found


def _compare(sums: dict[str, float], reference: Tensor, logits: Tensor, row: Tensor) -> None:
    if reference.shape != logits.shape:
        raise CrepeError(
            f"the reference predicts {reference.shape[-1]} tokens and the model {logits.shape[-1]}: "
            "they need the same vocabulary"
        )
    sums["reference"] += float(negative_log_likelihood(reference, row.to(reference.device)))
    sums["kl"] += float(kl_divergence(reference, logits.to(reference.device)))
    sums["top1"] += float(top1_matches(reference, logits.to(reference.device)))


def _means(sums: dict[str, float], tokens: int, compared: bool) -> dict[str, Any]:
    if math.isnan(sums["model"]):
        raise CrepeError("the model's predictions are NaN: its weights are broken, or its dtype is too narrow")
    found: dict[str, Any] = {"token_perplexity": _exp(sums["model"] / tokens), "tokens": tokens}
    if compared:
        found["reference_token_perplexity"] = _exp(sums["reference"] / tokens)
        found["kl_divergence"] = sums["kl"] / tokens
        found["top1_agreement"] = sums["top1"] / tokens
    return found


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf
