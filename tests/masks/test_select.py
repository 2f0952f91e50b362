"""Exact selection against brute force, with ties."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from crepe.masks import apply_mask, kept_count, select_largest, select_n_of_m

# Few distinct values, so that ties are the rule.
SCORES = st.lists(st.integers(0, 3), min_size=1, max_size=48)


def _brute_force(values: list[float], keep: int) -> list[bool]:
    """Stable: larger first, among equals the earlier one."""
    order = sorted(range(len(values)), key=lambda i: (-values[i], i))
    return [i in order[:keep] for i in range(len(values))]


@given(SCORES, st.floats(0, 0.999))
def test_largest_is_exact_and_stable(values: list[int], sparsity: float) -> None:
    keep = kept_count(len(values), sparsity)
    score = torch.tensor([values, values[::-1]], dtype=torch.float32)
    mask = select_largest(score, keep)
    assert mask[0].tolist() == _brute_force(values, keep)
    assert mask[1].tolist() == _brute_force(values[::-1], keep)
    assert select_largest(score[:1], keep)[0].tolist() == mask[0].tolist()


@given(st.integers(2, 20), st.data())
@settings(max_examples=60)
def test_n_of_m_is_exact_and_stable(m: int, data: st.DataObject) -> None:
    n = data.draw(st.integers(1, m - 1))
    rows = data.draw(st.lists(st.lists(st.integers(0, 2), min_size=3 * m, max_size=3 * m), min_size=1, max_size=3))
    mask = select_n_of_m(torch.tensor(rows, dtype=torch.float32), n, m)
    for row, kept in zip(rows, mask.tolist(), strict=True):
        for start in range(0, 3 * m, m):
            assert kept[start : start + m] == _brute_force(row[start : start + m], n)


@given(st.integers(0, 1000), st.floats(0, 0.999))
def test_kept_count_is_within_half_a_weight(total: int, sparsity: float) -> None:
    assert abs((total - kept_count(total, sparsity)) - total * sparsity) <= 0.5 + 1e-9


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_no_negative_zero(dtype: torch.dtype) -> None:
    weight = torch.tensor([[-1.0, -0.0, 2.0, -3.0]], dtype=dtype)
    pruned = apply_mask(weight, torch.tensor([[False, True, True, False]]))
    assert pruned.tolist() == [[0.0, 0.0, 2.0, 0.0]]
    assert not torch.signbit(pruned).any()
    assert pruned.dtype == dtype
