"""The kernels of the pruning step on a GPU: equal to their references there, into memory that was full of NaN."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from crepe.checkpoint.packing import pack
from crepe.criteria import CRITERIA, Coefficients, score
from crepe.kernels.dispatch import OPERATIONS
from crepe.masks import Mask, apply_mask, parse_pattern
from crepe.pipeline import selection
from gpu import needs_gpu, replayed
from pruning_cases import FORMS, factors, hard_weight
from sparse_weights import poisoned

pytestmark = needs_gpu
DTYPES = [torch.bfloat16, torch.float16, torch.float32]
SHAPES = [(1, 64), (37, 1056), (513, 4096), (256, 11008)]


def _check(name: str, *arguments: Any) -> Any:
    operation = OPERATIONS.get(name)
    with poisoned():
        found = operation.run(*arguments, backend="triton")
    expected = operation.run(*arguments, backend="torch")
    pairs = zip(found, expected, strict=True) if isinstance(found, tuple) else [(found, expected)]
    assert all(torch.equal(one, other) and one.dtype == other.dtype for one, other in pairs), name
    return found


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", SHAPES)
def test_selection(shape: tuple[int, int], form: str, dtype: torch.dtype) -> None:
    weight, parts = hard_weight(*shape, dtype, "cuda"), factors(form, *shape, "cuda")
    for n, m in ((2, 4), (1, 4), (4, 8)):
        _check("select_n_of_m", weight, n, m, *parts)
    for share in (0.0, 0.01, 0.5, 1.0):
        _check("select_by_row", weight, int(share * shape[1]), *parts)
        _check("select_overall", weight, int(share * weight.numel()), *parts)
    _check("prune_pack", weight, *parts)


@pytest.mark.parametrize("dtype", DTYPES)
def test_selection_without_ties(dtype: torch.dtype) -> None:
    weight = torch.randn(2048, 4096, device="cuda").to(dtype)
    parts = factors("all", 2048, 4096, "cuda")
    for share in (0.001, 0.5, 0.8):
        _check("select_overall", weight, int(share * weight.numel()), *parts)
        _check("select_by_row", weight, int(share * 4096), *parts)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_sums_windows_and_bitmaps(shape: tuple[int, int], dtype: torch.dtype) -> None:
    weight = torch.randn(*shape, device="cuda").to(dtype)
    _check("absolute_sums", weight)
    for kernel in (1, 3, 7):
        _check("box_mean", weight, kernel)
    kept = weight > 0.3
    values, bits = _check("bitmap_pack", weight, kept, int(kept.sum()))
    _check("bitmap_unpack", values, bits, list(shape))


@pytest.mark.parametrize("method", CRITERIA.names())
@pytest.mark.parametrize(
    ("pattern", "compare"), [("2:4", "tensor"), ("unstructured", "row"), ("unstructured", "tensor")]
)
def test_pruning_selects_what_plain_torch_selects(method: str, pattern: str, compare: str) -> None:
    weight = torch.randn(300, 1024, device="cuda").bfloat16()
    statistics, coefficients = {"norm": torch.rand(1024, device="cuda") * 9}, Coefficients()
    criterion, chosen = CRITERIA.get(method), parse_pattern(pattern)
    expected = chosen.select(score(criterion, weight, statistics, coefficients), 0.5, compare)
    found = selection.at_once(criterion, chosen, weight, statistics, coefficients, 0.5, compare, "x")
    assert found is not None and torch.equal(found, expected)


@pytest.mark.parametrize("pattern", ["unstructured", "2:4"])
def test_a_weight_on_the_gpu_is_packed_as_one_on_the_cpu(pattern: str) -> None:
    chosen = parse_pattern(pattern)
    weight = torch.randn(300, 1056).bfloat16()
    kept = chosen.select(weight.float().abs(), 0.5)
    weight, masks = apply_mask(weight, kept), [Mask(kept, chosen)]
    found, expected = pack(weight.cuda(), masks), pack(weight, masks)
    assert found.layout == expected.layout and found.layout is not None
    assert all(torch.equal(part, expected.tensors[suffix]) for suffix, part in found.tensors.items())
    dense = found.layout.unpack({suffix: part.cuda() for suffix, part in found.tensors.items()})
    assert torch.equal(dense.cpu().view(torch.int16), weight.view(torch.int16))


@pytest.mark.parametrize("name", ["select_n_of_m", "select_by_row", "select_overall", "prune_pack", "absolute_sums"])
def test_recorded_in_a_graph_and_compiled(name: str) -> None:
    """A replay sees new weights in the old memory; torch.compile keeps the operation whole."""
    numbers = {"select_n_of_m": (2, 4), "select_by_row": (100,), "select_overall": (5000,)}.get(name, ())
    parts = () if name == "absolute_sums" else factors("all", 64, 256, "cuda")
    assert name in OPERATIONS.names()
    operation = getattr(torch.ops.crepe, name)

    def first(weight: Tensor) -> Tensor:
        found = operation(weight, *numbers, *parts)
        return found[0] if isinstance(found, tuple) else found

    weight, other = (torch.randn(64, 256, device="cuda").bfloat16() for _ in range(2))
    expected = first(other)
    assert torch.equal(replayed(first, weight, other), expected)
    assert torch.equal(torch.compile(first, fullgraph=True)(other), expected)
