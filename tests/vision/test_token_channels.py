"""Token channels: the formula, the batch on which the published form depends, and the static form, which does not."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from crepe.vision.token_channels import batch_importance, image_importance, kept_channels, sample_patches, top_channels


def _tokens(batch: int = 6, tokens: int = 9, channels: int = 5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    found = torch.randn(batch, tokens, channels, generator=generator)
    return found, torch.rand(batch, tokens, generator=generator).softmax(-1)


@pytest.mark.parametrize("prefix", [1, 2])
def test_image_importance_is_the_formula(prefix: int) -> None:
    tokens, attention = _tokens()
    found = image_importance(tokens, attention, prefix)
    patches = 9 - prefix
    for b in range(6):
        for c in range(5):
            weighted = sum(float(attention[b, s] * tokens[b, s, c].abs()) for s in range(prefix, 9)) / patches
            naive = 2 * float(tokens[b, 0, c].abs()) / (1 + patches) + patches / (1 + patches) * weighted
            assert float(found[b, c]) == pytest.approx(naive, rel=1e-5)


def test_batch_importance_is_the_formula_with_means_over_the_batch() -> None:
    tokens, attention = _tokens()
    sampled = torch.tensor([3, 0, 3])
    mean = attention.mean(0)
    naive = 2 / 9 * tokens[:, 0].abs().mean(0)
    for s in sampled.tolist():
        naive += 8 / 9 / 3 * mean[1 + s] * tokens[:, 1 + s].abs().mean(0)
    torch.testing.assert_close(batch_importance(tokens, sampled, attention), naive)


def test_without_a_class_token_only_sizes_count() -> None:
    tokens, _ = _tokens()
    torch.testing.assert_close(image_importance(tokens, None, 0), tokens.abs().mean(1))
    torch.testing.assert_close(batch_importance(tokens, torch.arange(9), None, 0), tokens.abs().mean((0, 1)))


def test_without_attention_both_forms_agree_on_the_mean_over_images() -> None:
    tokens, _ = _tokens()
    torch.testing.assert_close(batch_importance(tokens, torch.arange(8)), image_importance(tokens).mean(0))


def test_the_static_form_does_not_depend_on_the_batches() -> None:
    tokens, attention = _tokens()
    whole = image_importance(tokens, attention)
    single = torch.cat([image_importance(tokens[b : b + 1], attention[b : b + 1]) for b in (3, 0, 5, 1, 4, 2)])
    torch.testing.assert_close(single[[1, 3, 5, 0, 4, 2]], whole, rtol=0, atol=0)


def test_the_published_form_depends_on_the_batch() -> None:
    tokens, attention = _tokens()
    sampled = torch.arange(8)
    assert not torch.equal(
        top_channels(batch_importance(tokens[:1], sampled, attention[:1]), 2),
        top_channels(batch_importance(tokens * torch.tensor([1.0, 9, 1, 9, 1]), sampled, attention), 2),
    )


def test_patches_are_sampled_by_seed_with_replacement() -> None:
    first = sample_patches(196, 0.02, torch.Generator().manual_seed(3))
    assert len(first) == 3 and torch.equal(first, sample_patches(196, 0.02, torch.Generator().manual_seed(3)))
    assert len(sample_patches(10, 0.02, torch.Generator())) == 1
    assert sample_patches(4, 1.0, torch.Generator()).tolist() == [0, 1, 2, 3]


def test_counts_are_rounded_down_and_ties_go_to_the_lower_index() -> None:
    assert [kept_channels(1536, 0.9), kept_channels(10, 0.3), kept_channels(4, 0.99)] == [153, 7, 1]
    assert top_channels(torch.tensor([1.0, 3.0, 2.0, 3.0, 2.0]), 3).tolist() == [1, 2, 3]
