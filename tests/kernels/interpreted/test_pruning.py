"""Pruning with the kernels in place of the CPU's selection: the same masks and the same bytes, for every method."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from crepe.calibration.statistics import ChannelSums
from crepe.checkpoint.packing import pack
from crepe.criteria import CRITERIA, Coefficients, score
from crepe.criteria import sums as criteria_sums
from crepe.kernels.dispatch import OPERATIONS
from crepe.kernels.reference import bitmap
from crepe.masks import Mask, apply_mask, parse_pattern
from crepe.models.views import View
from crepe.pipeline import selection
from crepe.pipeline.prune import prune_views
from crepe.recipe import build, choose
from pruning_cases import hard_weight

PATTERNS = [
    ("2:4", 0.5, "tensor"),
    ("4:8", 0.5, "tensor"),
    ("unstructured", 0.6, "row"),
    ("unstructured", 0.4, "tensor"),
]
COEFFICIENTS = [Coefficients(row=0.3, column=0.7, activation=0.9), Coefficients(neighbourhood=0.4)]


@pytest.fixture(autouse=True)
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (selection, criteria_sums):
        monkeypatch.setattr(module, "on_gpu", lambda tensor: True)


def _sums_by(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on the sums of a score come from that backend."""

    def run(operation: str, weight: torch.Tensor, *numbers: int) -> Any:
        return OPERATIONS.get(operation).run(weight.contiguous(), *numbers, backend=backend)

    monkeypatch.setattr(criteria_sums, "_run", run)


@pytest.mark.parametrize("method", CRITERIA.names())
@pytest.mark.parametrize(("pattern", "sparsity", "compare"), PATTERNS)
def test_masks_are_the_same(
    method: str, pattern: str, sparsity: float, compare: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(7, 40, generator=generator).bfloat16()
    statistics = {"norm": torch.rand(40, generator=generator) * 9}
    criterion, chosen = CRITERIA.get(method), parse_pattern(pattern)
    for coefficients in COEFFICIENTS if method == "crepe" else COEFFICIENTS[:1]:
        _sums_by("torch", monkeypatch)
        importance = score(criterion, weight, statistics, coefficients)
        _sums_by("triton", monkeypatch)
        assert torch.equal(score(criterion, weight, statistics, coefficients), importance)
        expected = chosen.select(importance, sparsity, compare)
        assert torch.equal(selection.by_score(chosen, importance, sparsity, compare), expected)
        found = selection.at_once(criterion, chosen, weight, statistics, coefficients, sparsity, compare, "x")
        assert (found is None) == bool(method == "crepe" and coefficients.neighbourhood)
        assert found is None or torch.equal(found, expected)


@pytest.mark.parametrize(
    ("form", "dtype"), [("relative", torch.bfloat16), ("context", torch.float32), ("product", torch.bfloat16)]
)
def test_ties_and_zeros_of_both_signs(form: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row of zeros, one of a single value, whole windows of equal weights: kernels and references, mask by mask."""
    weight, norm = hard_weight(6, 24, dtype).clamp(-2, 2), torch.ones(24)
    for neighbourhood in (0.0, 0.5):
        coefficients = Coefficients(neighbourhood=neighbourhood, form=form)
        found = []
        for backend in ("torch", "triton"):
            _sums_by(backend, monkeypatch)
            found.append(score(CRITERIA.get("crepe"), weight, {"norm": norm}, coefficients))
        assert torch.equal(found[0].view(torch.int32), found[1].view(torch.int32))
        for pattern, sparsity, compare in PATTERNS:
            chosen = parse_pattern(pattern)
            expected = chosen.select(found[0], sparsity, compare)
            assert torch.equal(selection.by_score(chosen, found[1], sparsity, compare), expected)


def test_a_bitmap_is_packed_and_unpacked_by_the_kernels() -> None:
    """In the interpreter the dispatcher prefers the kernels; a fused parameter lies the other way around."""
    weight, pattern = hard_weight(2 * 8, 20, torch.bfloat16).reshape(2, 8, 20), parse_pattern("unstructured")
    masks = [Mask(pattern.select(matrix.T.float().abs(), 0.5), pattern) for matrix in weight]
    kept = torch.stack([mask.kept.T for mask in masks])
    pruned = apply_mask(weight, kept)
    found = pack(pruned, masks, transposed=True)
    values, bits = bitmap.pack(pruned, kept)
    assert OPERATIONS.get("bitmap_pack").choose(pruned[0], kept[0].contiguous(), 1).name == "triton"
    assert OPERATIONS.get("bitmap_unpack").choose(values, bits, [2, 8, 20]).name == "triton"
    assert torch.equal(found.tensors[""], values) and torch.equal(found.tensors["_bits"], bits)
    assert found.layout is not None
    assert torch.equal(found.layout.unpack(found.tensors).view(torch.int16), pruned.view(torch.int16))


@pytest.mark.parametrize("method", ["wanda", "ria", "crepe"])
@pytest.mark.parametrize("transposed", [False, True])
def test_pruned_weights_have_the_same_bytes(method: str, transposed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A whole step of the pipeline on a matrix, stored as Linear stores it or the other way around."""
    choices = choose(build({"model": "x", "method": method, "pattern": "2:4"}))
    sums = ChannelSums.of(torch.rand(1, 9, 24, generator=torch.Generator().manual_seed(1)))
    results = []
    for on_gpu in (True, False):
        for module in (selection, criteria_sums):
            monkeypatch.setattr(module, "on_gpu", lambda tensor, answer=on_gpu: answer)
        weight = torch.randn(24, 16, generator=torch.Generator().manual_seed(0)).bfloat16()
        owner = nn.Module()
        owner.weight = nn.Parameter(weight if transposed else weight.T.contiguous())
        view = View("some.weight", owner, "weight", (16, 24), transposed)
        reports, masks = prune_views([view], {"some.weight": sums}, {"some.weight": 0.5}, choices)
        results.append((owner.weight.detach(), masks["some.weight"].kept, reports))
    (weight, kept, reports), (other_weight, other_kept, other_reports) = results
    assert torch.equal(weight.view(torch.int16), other_weight.view(torch.int16)) and torch.equal(kept, other_kept)
    assert reports == other_reports and reports["some.weight"].zeros == 192
