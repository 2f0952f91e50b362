"""Token channel selection while the model runs, as published (ToaSt, ICML 2026). For comparison only: see the static
form in `crepe.vision.token_channels`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from crepe.vision.heads import AttentionWeights
from crepe.vision.token_channels import (
    CLASS_WEIGHT,
    SAMPLED_SHARE,
    batch_importance,
    image_importance,
    kept_channels,
    sample_patches,
    top_channels,
)


class TokenGate(nn.Module):
    """Zeroes the channels of tokens (batch, tokens, channels) that matter least.

    per_image False is the published form: one choice for the whole batch from a random few of its patches, so the
    result for an image DEPENDS ON THE BATCH it comes in, and on how often the gate has run since `seed`. per_image
    True chooses for each image from all its patches, which depends on nothing else.
    """

    def __init__(
        self, ratio: float, prefix: int = 1, share: float = SAMPLED_SHARE, seed: int = 0, per_image: bool = False
    ) -> None:
        super().__init__()
        self.ratio, self.prefix, self.share, self.per_image = ratio, prefix, share, per_image
        self.generator = torch.Generator().manual_seed(seed)

    def forward(self, tokens: Tensor, attention: Tensor | None = None) -> Tensor:
        """attention: (batch, tokens), what the class token pays to each token, averaged over heads."""
        if self.ratio <= 0:
            return tokens
        if self.per_image:
            importance = image_importance(tokens, attention, self.prefix)
        else:
            sampled = sample_patches(tokens.shape[1] - self.prefix, self.share, self.generator).to(tokens.device)
            importance = batch_importance(tokens, sampled, attention, self.prefix, CLASS_WEIGHT)[None]
        kept = top_channels(importance, kept_channels(tokens.shape[2], self.ratio))
        mask = torch.zeros_like(importance, dtype=torch.bool).scatter_(1, kept, True)
        return torch.where(mask[:, None], tokens, torch.zeros((), dtype=tokens.dtype, device=tokens.device))


def class_attention(normed: Tensor, weights: AttentionWeights) -> Tensor:
    """The attention of the first token, averaged over heads: (batch, tokens, in) -> (batch, tokens)."""
    query = torch.einsum("bi,hdi->bhd", normed[:, 0], weights.query)
    key = torch.einsum("bni,hdi->bhnd", normed, weights.key)
    query = query if weights.query_bias is None else query + weights.query_bias
    key = key if weights.key_bias is None else key + weights.key_bias[:, None]
    return (weights.scale * torch.einsum("bhd,bhnd->bhn", query, key)).softmax(-1).mean(1)


class GatedBlock(nn.Module):
    """A pre-norm transformer block whose feed-forward part selects channels at run time.

    x <- x + attention(norm1(x)); x <- gate1(x); x + fc2(gate2(act(fc1(norm2(x))))). Channels that the first gate drops
    are gone from the residual stream as well, as in the paper's code. read: gives the attention's weights as they are
    now, for the row of the class token; None lets all patches count the same.
    """

    def __init__(
        self,
        norm1: nn.Module,
        attention: nn.Module,
        norm2: nn.Module,
        feed_forward: tuple[nn.Module, nn.Module, nn.Module],
        gates: tuple[TokenGate, TokenGate],
        read: Callable[[], AttentionWeights] | None = None,
    ) -> None:
        """feed_forward: fc1, activation, fc2; gates: of the input of fc1 and of the input of fc2."""
        super().__init__()
        self.norm1, self.attention, self.norm2 = norm1, attention, norm2
        self.fc1, self.activation, self.fc2 = feed_forward
        self.gate1, self.gate2 = gates
        self.read = read

    def forward(self, tokens: Tensor, *_: Any, **__: Any) -> Tensor:
        normed = self.norm1(tokens)
        attended = self.attention(normed)
        row = None if self.read is None else class_attention(normed, self.read())
        tokens = tokens + (attended[0] if isinstance(attended, tuple) else attended)
        tokens = self.gate1(tokens, row)
        hidden = self.gate2(self.activation(self.fc1(self.norm2(tokens))), row)
        output: Tensor = tokens + self.fc2(hidden)
        return output
