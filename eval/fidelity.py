"""How far a model's predictions are from a reference: pure functions on logits."""

from __future__ import annotations

import torch
from torch import Tensor


def negative_log_likelihood(logits: Tensor, tokens: Tensor) -> Tensor:
    """Sum of -log p(token | before) over all predicted tokens, a float64 scalar.

    logits: (batch, length, vocabulary); tokens: (batch, length). The first token of a row is not predicted.
    """
    losses = torch.nn.functional.cross_entropy(
        logits[:, :-1].reshape(-1, logits.shape[-1]).float(), tokens[:, 1:].reshape(-1), reduction="none"
    )
    return losses.double().sum()


def kl_divergence(reference: Tensor, logits: Tensor) -> Tensor:
    """Sum over predictions of KL(reference || model) in nats, a float64 scalar. Both: (batch, length, vocabulary)."""
    log_p = reference[:, :-1].float().log_softmax(-1)
    log_q = logits[:, :-1].float().log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1).double().sum()


def top1_matches(reference: Tensor, logits: Tensor) -> Tensor:
    """How many predictions have the same most likely token, an integer scalar. Both: (batch, length, vocabulary)."""
    return (reference[:, :-1].argmax(-1) == logits[:, :-1].argmax(-1)).sum()
