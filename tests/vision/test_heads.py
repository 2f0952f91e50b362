"""Head dimensions: scores against naive ones, and masked equals sliced."""

from __future__ import annotations

import statistics
from dataclasses import replace

import pytest
import torch

from attention import attend, random_attention, random_tokens
from crepe.vision.heads import (
    AttentionWeights,
    coupled_score,
    keep_query_key,
    keep_value_output,
    kept_dimensions,
    median_distance,
    top_dimensions,
)


def test_the_score_is_the_distance_from_the_median_row() -> None:
    rows = torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(0))
    for head, scores in zip(rows.tolist(), median_distance(rows), strict=True):
        middle = [statistics.median_low(column) for column in zip(*head, strict=True)]
        naive = [sum((a - b) ** 2 for a, b in zip(row, middle, strict=True)) ** 0.5 for row in head]
        assert scores.tolist() == pytest.approx(naive)


def test_coupled_scores_see_both_matrices() -> None:
    first, second = torch.zeros(1, 5, 3), torch.zeros(1, 5, 4)
    first[0, 2], second[0, 4] = 1.0, 3.0
    for score in ("median", "l2"):
        assert coupled_score(first, second, score)[0].tolist() == pytest.approx([0, 0, 3**0.5, 0, 6])
    assert coupled_score(first, second, "l1")[0].tolist() == [0, 0, 3, 0, 12]


def test_counts_are_rounded_down_or_up_to_whole_multiples() -> None:
    assert [kept_dimensions(64, 0.9), kept_dimensions(80, 0.9), kept_dimensions(64, 0.9, 8)] == [6, 8, 8]
    assert [kept_dimensions(10, 0.9), kept_dimensions(6, 0.1, 8), kept_dimensions(8, 1.0)] == [1, 6, 1]


def test_ties_go_to_the_lower_index_and_indices_rise() -> None:
    assert top_dimensions(torch.tensor([[1.0, 2.0, 2.0, 1.0, 2.0]]), 2).tolist() == [[1, 2]]


def _masked(weights: AttentionWeights, query_key: torch.Tensor, value_output: torch.Tensor) -> AttentionWeights:
    """Weights of other dimensions are zero; their biases stay where they are."""
    pair = torch.zeros(weights.query.shape[:2]).scatter_(1, query_key, 1.0)[:, :, None]
    other = torch.zeros(weights.value.shape[:2]).scatter_(1, value_output, 1.0)[:, :, None]
    return replace(
        weights,
        query=weights.query * pair,
        key=weights.key * pair,
        value=weights.value * other,
        output=weights.output * other,
    )


@pytest.mark.parametrize("biased", [True, False])
def test_sliced_equals_masked_although_the_biases_of_removed_dimensions_go(biased: bool) -> None:
    weights, tokens = random_attention(), random_tokens()
    if not biased:
        weights = replace(weights, query_bias=None, key_bias=None, value_bias=None, output_bias=None)
    query_key, value_output = torch.tensor([[0, 2, 5], [1, 2, 3]]), torch.tensor([[1, 4], [0, 5]])
    sliced = keep_value_output(keep_query_key(weights, query_key), value_output)
    assert sliced.query.shape == (2, 3, 12) and sliced.output.shape == (2, 2, 12)
    torch.testing.assert_close(attend(tokens, sliced), attend(tokens, _masked(weights, query_key, value_output)))
