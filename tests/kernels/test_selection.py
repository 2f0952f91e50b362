"""The operations of the pruning step: their references against brute force, and what torch sees of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, library

from crepe.criteria.sums import box_mean as box_mean_of_scores
from crepe.errors import CrepeError
from crepe.kernels.bench import select_by_row as bench_by_row
from crepe.kernels.bench import select_overall as bench_overall
from crepe.kernels.dispatch import OPERATIONS, interpreting
from crepe.kernels.reference import selection, sp24, sums
from crepe.masks import apply_mask
from sparse_weights import strided

pytestmark = pytest.mark.skipif(interpreting(), reason="tests of kernels in the interpreter are another folder's")
# Few distinct values, so that ties are the rule.
VALUES = st.lists(st.integers(-3, 3), min_size=24, max_size=24)
FORMS = ("values", "norm", "all")


def _factors(form: str, outputs: int, inputs: int) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    norm = torch.arange(inputs).remainder(3) / 2 + 0.5
    row, column = torch.arange(outputs) / 4 + 0.25, torch.arange(inputs).remainder(5) / 8
    return {"values": (None, None, None), "norm": (norm, None, None), "all": (norm, row, column)}[form]


def _brute_scores(weight: Tensor, factors: tuple[Tensor | None, ...]) -> list[list[float]]:
    norm, row, column = factors
    rows = []
    for i, line in enumerate(weight.tolist()):
        rows.append(list(line))
        for j, value in enumerate(line):
            share = 1.0 if row is None or column is None else float(row[i]) + float(column[j])
            rows[i][j] = value if norm is None else abs(value) * share * float(norm[j])
    return rows


def _best(scores: list[float], keep: int) -> list[bool]:
    order = sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:keep]
    return [i in order for i in range(len(scores))]


@given(VALUES, st.sampled_from(FORMS), st.integers(0, 24))
@settings(max_examples=60)
def test_references_match_brute_force(values: list[int], form: str, keep: int) -> None:
    """All numbers are small multiples of 1/16, so that float32 is exact."""
    weight = torch.tensor(values, dtype=torch.bfloat16).reshape(3, 8)
    factors = _factors(form, 3, 8)
    scores = _brute_scores(weight, factors)
    overall = selection.select_overall(weight, keep, *factors)
    assert overall.flatten().tolist() == _best([score for line in scores for score in line], keep)
    by_row = selection.select_by_row(weight, keep // 3, *factors)
    assert by_row.tolist() == [_best(line, keep // 3) for line in scores]
    for n, m in ((1, 4), (2, 4), (5, 8)):
        found = selection.select_n_of_m(weight, n, m, *factors)
        groups = [line[start : start + m] for line in scores for start in range(0, 8, m)]
        assert found.reshape(-1, m).tolist() == [_best(group, n) for group in groups]


def test_packing_keeps_what_the_mask_keeps() -> None:
    weight = torch.randn(5, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    factors = _factors("all", 5, 64)
    packed = selection.prune_pack(weight, *factors)
    assert torch.equal(sp24.unpack(*packed), apply_mask(weight, selection.select_n_of_m(weight, 2, 4, *factors)))


@pytest.mark.parametrize("kernel", [1, 3, 5, 11])
def test_sums_are_those_of_the_scores(kernel: int) -> None:
    weight = torch.randn(9, 13, generator=torch.Generator().manual_seed(0))
    assert torch.equal(sums.box_mean(weight, kernel), box_mean_of_scores(weight.abs(), kernel))
    rows, columns = sums.absolute_sums(weight)
    torch.testing.assert_close(rows, weight.abs().sum(1), rtol=1e-6, atol=0)
    torch.testing.assert_close(columns, weight.abs().sum(0), rtol=1e-6, atol=0)


def _arguments() -> dict[str, tuple[Any, ...]]:
    weight = torch.randn(3, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    kept = weight > 0
    values, bits = weight[kept], OPERATIONS.get("bitmap_pack").run(weight, kept, int(kept.sum()))[1]
    factors = _factors("all", 3, 64)
    return {
        "select_n_of_m": (weight, 2, 4, *factors),
        "select_by_row": (weight, 7, *factors),
        "select_overall": (weight, 70, None, None, None),
        "prune_pack": (weight, *factors),
        "absolute_sums": (weight,),
        "box_mean": (weight, 3),
        "bitmap_pack": (weight, kept, int(kept.sum())),
        "bitmap_unpack": (values, bits, [3, 64]),
    }


@pytest.mark.parametrize("name", _arguments())
def test_torch_may_trust_the_custom_ops(name: str) -> None:
    arguments = _arguments()[name]
    operation = OPERATIONS.get(name)
    library.opcheck(getattr(torch.ops.crepe, name), arguments)
    assert operation.choose(*arguments).name == "torch"
    with pytest.raises(CrepeError, match=f"{name} cannot run on backend 'triton': it needs a GPU"):
        operation.run(*arguments, backend="triton")


@pytest.mark.parametrize("name", _arguments())
def test_strides_of_the_result_are_known_before_it_is_there(name: str) -> None:
    """Whatever those of the arguments are."""
    arguments = tuple(strided(argument) for argument in _arguments()[name])
    assert any(isinstance(argument, Tensor) and not argument.is_contiguous() for argument in arguments)
    library.opcheck(getattr(torch.ops.crepe, name), arguments, test_utils=("test_schema", "test_faketensor"))


def test_ways_to_sort_select_the_same() -> None:
    """What the benches hold the kernels against computes the same mask."""
    weight = torch.randn(5, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    factors = _factors("norm", 5, 64)
    assert torch.equal(bench_by_row.by_sorting(weight, 9, *factors), selection.select_by_row(weight, 9, *factors))
    assert torch.equal(bench_overall.by_sorting(weight, 99, *factors), selection.select_overall(weight, 99, *factors))


def test_what_does_not_fit_is_named() -> None:
    with pytest.raises(CrepeError, match="inputs are no multiple of 4"):
        OPERATIONS.get("select_n_of_m").run(torch.ones(2, 6), 2, 4, None, None, None)
    with pytest.raises(CrepeError, match="the mask keeps 12 weights and not 11"):
        OPERATIONS.get("bitmap_pack").run(torch.ones(2, 6), torch.ones(2, 6) > 0, 11)
