"""The run-time form: faithful to the formula, dependent on its batch, and dense where no channel goes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from attention import attend, probabilities, random_attention, random_tokens
from crepe.vision.heads import AttentionWeights
from crepe.vision.token_channels import batch_importance, sample_patches, top_channels
from crepe.vision.token_gate import GatedBlock, TokenGate, class_attention


class _Attention(nn.Module):
    def __init__(self, weights: AttentionWeights) -> None:
        super().__init__()
        self.weights = weights

    def forward(self, tokens: Tensor) -> Tensor:
        return attend(tokens, self.weights)


def _block(ratio1: float, ratio2: float, per_image: bool = False) -> GatedBlock:
    torch.manual_seed(0)
    weights = random_attention()
    parts = nn.Linear(12, 24), nn.GELU(), nn.Linear(24, 12)
    gates = TokenGate(ratio1, per_image=per_image), TokenGate(ratio2, per_image=per_image)
    return GatedBlock(nn.LayerNorm(12), _Attention(weights), nn.LayerNorm(12), parts, gates, lambda: weights)


def _dense(block: GatedBlock, tokens: Tensor) -> Tensor:
    tokens = tokens + block.attention(block.norm1(tokens))
    return tokens + block.fc2(block.activation(block.fc1(block.norm2(tokens))))


def test_the_class_row_is_that_of_the_attention() -> None:
    weights, tokens = random_attention(), random_tokens()
    torch.testing.assert_close(class_attention(tokens, weights), probabilities(tokens, weights)[:, :, 0].mean(1))


def test_without_ratios_the_block_is_the_dense_one() -> None:
    block, tokens = _block(0.0, 0.0), random_tokens()
    assert torch.equal(block(tokens), _dense(block, tokens))


def test_a_gate_keeps_the_channels_of_the_published_formula() -> None:
    tokens = random_tokens(4, 60)
    attention = torch.rand(4, 60, generator=torch.Generator().manual_seed(0))
    sampled = sample_patches(59, 0.1, torch.Generator().manual_seed(5))
    kept = top_channels(batch_importance(tokens, sampled, attention), 6)
    gated = TokenGate(0.5, share=0.1, seed=5)(tokens, attention)
    assert torch.equal(gated[..., kept], tokens[..., kept])
    assert int((gated != 0).any(0).any(0).sum()) == 6


def test_channels_dropped_before_fc1_leave_the_residual_stream() -> None:
    block, tokens = _block(0.5, 0.0), random_tokens()
    nn.init.zeros_(block.fc2.weight)
    nn.init.zeros_(block.fc2.bias)
    assert int((block(tokens) == 0).all(0).all(0).sum()) == 6


def test_the_published_form_depends_on_the_batch_and_the_one_per_image_does_not() -> None:
    tokens = random_tokens(8)
    for per_image in (False, True):
        gate = TokenGate(0.5, share=1.0, per_image=per_image)
        alone = torch.cat([gate(tokens[b : b + 1]) for b in range(8)])
        assert torch.equal(gate(tokens), alone) == per_image


def test_gradients_reach_the_channels_that_stay() -> None:
    tokens = random_tokens().requires_grad_()
    block = _block(0.5, 0.5)
    block(tokens).square().sum().backward()
    assert tokens.grad is not None and bool(tokens.grad.any()) and bool(block.fc1.weight.grad.any())
