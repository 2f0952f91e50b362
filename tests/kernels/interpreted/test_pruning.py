"""Pruning with the kernels in place of the CPU's selection: the same masks and the same bytes, for every method."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from crepe.calibration.statistics import ChannelSums
from crepe.criteria import CRITERIA, Coefficients, score
from crepe.masks import parse_pattern
from crepe.models.views import View
from crepe.pipeline import selection
from crepe.pipeline.prune import prune_views
from crepe.recipe import build, choose

PATTERNS = [
    ("2:4", 0.5, "tensor"),
    ("4:8", 0.5, "tensor"),
    ("unstructured", 0.6, "row"),
    ("unstructured", 0.4, "tensor"),
]
COEFFICIENTS = [Coefficients(row=0.3, column=0.7, activation=0.9), Coefficients(neighbourhood=0.4)]


@pytest.fixture(autouse=True)
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection, "on_gpu", lambda tensor: True)


@pytest.mark.parametrize("method", CRITERIA.names())
@pytest.mark.parametrize(("pattern", "sparsity", "compare"), PATTERNS)
def test_masks_are_the_same(method: str, pattern: str, sparsity: float, compare: str) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(7, 40, generator=generator).bfloat16()
    statistics = {"norm": torch.rand(40, generator=generator) * 9}
    criterion, chosen = CRITERIA.get(method), parse_pattern(pattern)
    for coefficients in COEFFICIENTS if method == "crepe" else COEFFICIENTS[:1]:
        importance = score(criterion, weight, statistics, coefficients)
        expected = chosen.select(importance, sparsity, compare)
        assert torch.equal(selection.by_score(chosen, importance, sparsity, compare), expected)
        found = selection.at_once(criterion, chosen, weight, statistics, coefficients, sparsity, compare, "x")
        assert (found is None) == bool(method == "crepe" and coefficients.neighbourhood)
        assert found is None or torch.equal(found, expected)


@pytest.mark.parametrize("method", ["wanda", "ria", "crepe"])
@pytest.mark.parametrize("transposed", [False, True])
def test_pruned_weights_have_the_same_bytes(method: str, transposed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A whole step of the pipeline on a matrix, stored as Linear stores it or the other way around."""
    choices = choose(build({"model": "x", "method": method, "pattern": "2:4"}))
    sums = ChannelSums.of(torch.rand(1, 9, 24, generator=torch.Generator().manual_seed(1)))
    results = []
    for on_gpu in (True, False):
        monkeypatch.setattr(selection, "on_gpu", lambda tensor, answer=on_gpu: answer)
        weight = torch.randn(24, 16, generator=torch.Generator().manual_seed(0)).bfloat16()
        owner = nn.Module()
        owner.weight = nn.Parameter(weight if transposed else weight.T.contiguous())
        view = View("some.weight", owner, "weight", (16, 24), transposed)
        reports, masks = prune_views([view], {"some.weight": sums}, {"some.weight": 0.5}, choices)
        results.append((owner.weight.detach(), masks["some.weight"].kept, reports))
    (weight, kept, reports), (other_weight, other_kept, other_reports) = results
    assert torch.equal(weight.view(torch.int16), other_weight.view(torch.int16)) and torch.equal(kept, other_kept)
    assert reports == other_reports and reports["some.weight"].zeros == 192
