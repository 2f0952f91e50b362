"""Sampled scores are those of the criterion, their masks those of the pattern; a model is dense again after a trial."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from crepe.criteria.crepe import crepe_score
from crepe.search.sampled import Sample
from crepe.search.space import Space, random_points
from families import tiny_subject

SPACE = Space(groups=("attention", "mlp"))


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "qwen3_moe"])
@pytest.mark.parametrize("entries", [1, 10**9])
def test_scores_are_those_of_the_criterion(model_type: str, entries: int) -> None:
    found = tiny_subject(model_type=model_type)
    norms = {name: s["norm"] for name, s in found.statistics.items()}
    views = {view.name: view for view in found.plan.views}
    sample = Sample(found.plan.views, norms, (3, 5, 7), 0, entries)
    for point in random_points(SPACE, 6, 1):
        coefficients = SPACE.coefficients(point)
        for stack in sample.stacks:
            scores = stack.score(coefficients.of(stack.kind))
            for name, rows, score in zip(stack.names, stack.rows, scores, strict=True):
                view = views[name]
                assert view.kind == stack.kind
                whole = crepe_score(view.matrix().float(), norms[name], coefficients.of(view.kind))
                torch.testing.assert_close(score, whole[rows], rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize(
    ("pattern", "fields"), [("unstructured", {}), ("unstructured", {"compare": "row"}), ("2:4", {}), ("4:8", {})]
)
def test_with_all_rows_the_masks_are_those_of_a_prune(pattern: str, fields: dict[str, Any]) -> None:
    found = tiny_subject(pattern, sparsity=None if ":" in pattern else 0.6, **fields)
    found.entries = 10**9
    coefficients = SPACE.coefficients(random_points(SPACE, 1, 2)[0])
    sampled = {
        name: mask
        for stack, _, masks in found.sample.masks(coefficients, found.choices)
        for name, mask in zip(stack.names, masks, strict=True)
    }
    with found.masked(coefficients):
        for view in found.plan.views:
            kept = view.matrix() != 0
            assert (kept == sampled[view.name]).float().mean() > 0.999


def test_a_model_is_dense_again_after_a_trial() -> None:
    found = tiny_subject("2:4")
    before = {name: p.clone() for name, p in found.model.named_parameters()}
    with pytest.raises(KeyboardInterrupt), found.masked(SPACE.coefficients(random_points(SPACE, 1, 0)[0])):
        assert any((p == 0).float().mean() > 0.4 for p in found.model.parameters())
        raise KeyboardInterrupt
    assert all(torch.equal(before[name], p) for name, p in found.model.named_parameters())
