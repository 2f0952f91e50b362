"""A plain attention and random weights for it: the reference of the tests of heads."""

from __future__ import annotations

import torch
from torch import Tensor

from crepe.vision.heads import AttentionWeights


def random_attention(heads: int = 2, dimensions: int = 6, width: int = 12, seed: int = 0) -> AttentionWeights:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator) * (torch.rand(shape[1], generator=generator) + 0.2)[:, None]

    def bias() -> Tensor:
        return torch.randn(heads, dimensions, generator=generator)

    matrices = [draw(heads, dimensions, width) for _ in range(4)]
    out_bias = torch.randn(width, generator=generator)
    return AttentionWeights(*matrices, dimensions**-0.5, bias(), bias(), bias(), out_bias)


def random_tokens(batch: int = 3, tokens: int = 7, width: int = 12, seed: int = 1) -> Tensor:
    """Correlated, with a mean that is not zero."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(width, width, generator=generator) / width**0.5
    return torch.randn(batch, tokens, width, generator=generator) @ mixing + torch.randn(width, generator=generator)


def project(tokens: Tensor, matrix: Tensor, bias: Tensor | None) -> Tensor:
    """(batch, tokens, in) -> (batch, heads, tokens, d)."""
    found = torch.einsum("bni,hdi->bhnd", tokens, matrix)
    return found if bias is None else found + bias[:, None]


def probabilities(tokens: Tensor, weights: AttentionWeights) -> Tensor:
    query = project(tokens, weights.query, weights.query_bias)
    return (weights.scale * query @ project(tokens, weights.key, weights.key_bias).mT).softmax(-1)


def context(tokens: Tensor, weights: AttentionWeights) -> Tensor:
    """What the output projection reads, (batch, tokens, heads * e)."""
    values = project(tokens, weights.value, weights.value_bias)
    return (probabilities(tokens, weights) @ values).transpose(1, 2).flatten(2)


def attend(tokens: Tensor, weights: AttentionWeights) -> Tensor:
    output = context(tokens, weights) @ weights.output.flatten(0, 1)
    return output if weights.output_bias is None else output + weights.output_bias
