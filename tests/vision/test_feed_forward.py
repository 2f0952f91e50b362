"""Narrow feed-forward parts: sliced equals masked, compensation helps, one image gives what a batch gives."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import gelu

from crepe.vision.compensation import moments_of
from crepe.vision.feed_forward import FeedForward, narrow


def _parts() -> tuple[FeedForward, Tensor]:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator) / shape[-1] ** 0.5

    mixing = draw(6, 6)
    tokens = torch.randn(40, 6, generator=generator) @ mixing + 0.5
    return FeedForward(draw(16, 6), draw(6, 16), draw(16), draw(6)), tokens


def _hidden(weights: FeedForward, tokens: Tensor) -> Tensor:
    return gelu(tokens @ weights.first.T + (0 if weights.first_bias is None else weights.first_bias))


def _run(weights: FeedForward, tokens: Tensor) -> Tensor:
    bias = 0 if weights.second_bias is None else weights.second_bias
    return _hidden(weights, tokens) @ weights.second.T + bias


KEPT = torch.tensor([0, 3, 4, 8, 9, 12, 15])


def test_sliced_equals_masked() -> None:
    weights, tokens = _parts()
    mask = torch.zeros(16).scatter_(0, KEPT, 1.0)
    small = narrow(weights, KEPT)
    assert small.first.shape == (7, 6) and small.second.shape == (6, 7)
    torch.testing.assert_close(_run(small, tokens), _run(replace(weights, second=weights.second * mask), tokens))
    bare = replace(weights, first_bias=None, second_bias=None)
    assert narrow(bare, KEPT).first_bias is None


def test_compensation_brings_the_output_closer() -> None:
    weights, tokens = _parts()
    hidden = _hidden(weights, tokens)
    small = narrow(weights, KEPT, moments_of(hidden.sum(0), hidden.T @ hidden, len(hidden)))
    dense = _run(weights, tokens)
    before = (_run(narrow(weights, KEPT), tokens) - dense).square().sum()
    assert (_run(small, tokens) - dense).square().sum() < 0.5 * before


def test_an_image_gets_the_same_alone_and_in_a_batch() -> None:
    weights, tokens = _parts()
    small = narrow(weights, KEPT)
    torch.testing.assert_close(_run(small, tokens)[:1], _run(small, tokens[:1]))
