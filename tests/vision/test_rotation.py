"""Rotations: they change nothing by themselves, and their first dimensions are the best there are."""

from __future__ import annotations

import itertools

import pytest
import torch

from attention import attend, context, project, random_attention, random_tokens
from crepe.vision.compensation import moments_of
from crepe.vision.heads import AttentionWeights, keep_query_key, keep_value_output
from crepe.vision.rotation import projected, rotate_query_key, rotate_value_output


def _moments(tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean (width,) and covariance (width, width) of tokens."""
    flat = tokens.flatten(0, 1).double()
    return flat.mean(0).float(), torch.cov(flat.T, correction=0).float()


def _query_key(weights: AttentionWeights, tokens: torch.Tensor) -> AttentionWeights:
    mean, covariance = _moments(tokens)
    offset = weights.query @ mean + weights.query_bias
    return rotate_query_key(weights, projected(covariance, weights.query, offset), projected(covariance, weights.key))


@pytest.mark.parametrize("measured", [True, False])
def test_a_rotated_attention_computes_the_same(measured: bool) -> None:
    weights, tokens = random_attention(), random_tokens()
    _, covariance = _moments(tokens)
    turned = _query_key(weights, tokens) if measured else rotate_query_key(weights)
    turned = rotate_value_output(turned, projected(covariance, weights.value) if measured else None)
    assert not torch.allclose(turned.query, weights.query) and not torch.allclose(turned.value, weights.value)
    torch.testing.assert_close(attend(tokens, turned), attend(tokens, weights), rtol=1e-3, atol=1e-3)


def test_projected_moments_are_those_of_the_projections() -> None:
    weights, tokens = random_attention(), random_tokens()
    mean, covariance = _moments(tokens)
    queries = project(tokens, weights.query, weights.query_bias).transpose(0, 1).flatten(1, 2)
    expected = queries.mT @ queries / queries.shape[1]
    found = projected(covariance, weights.query, weights.query @ mean + weights.query_bias)
    torch.testing.assert_close(found.float(), expected, rtol=1e-3, atol=1e-3)


def _logit_error(weights: AttentionWeights, small: AttentionWeights, tokens: torch.Tensor) -> torch.Tensor:
    """Squared error of q k^T over all pairs of tokens, without constants of a query: one number for each head."""
    flat = tokens.flatten(0, 1)[None]
    products = [project(flat, w.query, w.query_bias) @ project(flat, w.key, w.key_bias).mT for w in (weights, small)]
    lost = products[0] - products[1]
    return (lost - lost.mean(-1, keepdim=True)).square().sum((0, 2, 3))


@pytest.mark.parametrize("keep", [1, 3, 5])
def test_no_choice_of_coordinates_beats_the_first_rotated_dimensions(keep: int) -> None:
    weights, tokens = random_attention(), random_tokens(6, 20)
    first = torch.arange(keep).expand(2, -1)
    rotated = _logit_error(weights, keep_query_key(_query_key(weights, tokens), first), tokens)
    for choice in itertools.combinations(range(6), keep):
        chosen = keep_query_key(weights, torch.tensor(choice).expand(2, -1))
        assert bool((rotated <= _logit_error(weights, chosen, tokens) * 1.001).all())


@pytest.mark.parametrize("keep", [1, 3, 5])
def test_no_choice_of_value_coordinates_beats_the_first_rotated_ones(keep: int) -> None:
    weights, tokens = random_attention(heads=1), random_tokens(6, 20)
    flat = context(tokens, weights).flatten(0, 1)
    moments = moments_of(flat.sum(0), flat.T @ flat, len(flat))
    turned = rotate_value_output(weights, moments.covariance[None])

    dense = attend(tokens, weights).flatten(0, 1)
    lost = dense - attend(tokens, keep_value_output(turned, torch.arange(keep)[None])).flatten(0, 1)
    rotated = float((lost - lost.mean(0)).square().sum())
    for choice in itertools.combinations(range(6), keep):
        # Even where the output projection is fitted to the chosen coordinates.
        known = torch.cat([flat[:, list(choice)], torch.ones(len(flat), 1)], 1)
        fitted = known @ torch.linalg.lstsq(known, dense).solution
        assert rotated <= float((dense - fitted).square().sum()) * 1.001


def test_a_dead_head_stays_dead_and_finite() -> None:
    weights, tokens = random_attention(), random_tokens()
    for matrix in (weights.query, weights.key, weights.value, weights.output):
        matrix[1] = 0.0
    turned = rotate_value_output(rotate_query_key(weights))
    torch.testing.assert_close(attend(tokens, turned), attend(tokens, weights), rtol=1e-3, atol=1e-3)
