"""Pruning single taps of depth-wise convolutions, with the same work in every group of channels (DEPrune, NeurIPS
2024: DCP and balanced workload tuning)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from crepe.errors import CrepeError
from crepe.masks.taps import Taps, removed_count


def tap_score(weight: Tensor) -> Tensor:
    """|W| with every channel's taps in a row: (channels, 1, kh, kw) -> (channels, kh * kw) float32."""
    return weight.detach().float().abs().flatten(1)


def guarded(score: Tensor) -> Tensor:
    """`score` with the best tap of every channel at infinity, so that no channel loses all taps and gives nothing but
    the bias of its batch norm (our guard; the paper allows it). Of equal taps the first is the best."""
    best = score.argmax(1, keepdim=True)
    return score.scatter(1, best, torch.inf)


def require_a_tap_each(weight: Tensor, sparsity: float, group: int, name: str) -> None:
    """Raises CrepeError where `sparsity` leaves fewer taps than there are channels in a group."""
    channels, taps = min(group, len(weight)), weight[0].numel()
    if channels * taps - removed_count(channels * taps, sparsity) < channels:
        raise CrepeError(
            f"sparsity {sparsity} leaves less than one of the {taps} taps of each channel of {name}: "
            f"use at most {math.floor(1000 * (1 - 1 / taps)) / 1000:g}"
        )


def select_taps(
    weight: Tensor, sparsity: float, group: int = 32, score: Tensor | None = None, name: str = "a depth-wise layer"
) -> Tensor:
    """Mask of the taps to keep, bool, of the shape of `weight` (channels, 1, kh, kw).

    Every group of `group` channels loses floor(sparsity * taps) of its smallest, and every channel keeps one. score:
    (channels, kh * kw), |W| unless given. name: of the layer, for the error.

    Raises:
        CrepeError: fewer taps would stay than there are channels.
    """
    score = tap_score(weight) if score is None else score
    require_a_tap_each(weight, sparsity, group, name)
    return Taps(group).select(guarded(score), sparsity).reshape(weight.shape)
