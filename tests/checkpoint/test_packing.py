"""One parameter: the layout it gets, exactly back again, and why it stays dense."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from crepe.checkpoint.layouts import as_matrix, from_matrix, parse_layout
from crepe.checkpoint.packing import pack, size_of
from crepe.errors import CrepeError
from crepe.masks import Mask, apply_mask, parse_pattern


def _pruned(
    pattern: str, shape: tuple[int, ...], transposed: bool = False, dtype: torch.dtype = torch.bfloat16
) -> tuple[torch.Tensor, list[Mask]]:
    """A random parameter pruned in a pattern, with the mask of each of its matrices."""
    generator = torch.Generator().manual_seed(hash((pattern, shape)) % 1000)
    parsed = parse_pattern(pattern)
    weight = torch.randn(shape, generator=generator).to(dtype)
    upright = weight.transpose(-1, -2) if transposed else weight
    matrices = upright if upright.dim() == 3 else upright[None]
    masks = [Mask(parsed.select(matrix.float().abs(), 0.5), parsed) for matrix in matrices]
    kept = torch.cat([mask.kept for mask in masks])
    return apply_mask(weight, from_matrix(kept, shape, transposed)), masks


@settings(deadline=None, max_examples=60)
@given(
    pattern=st.sampled_from(["2:4", "1:4", "4:8", "unstructured", "colblock:4x8", "colblock:3x2"]),
    rows=st.integers(1, 9),
    words=st.integers(1, 4),
    experts=st.integers(0, 3),
    transposed=st.booleans(),
)
def test_every_layout_gives_back_the_same_weights(
    pattern: str, rows: int, words: int, experts: int, transposed: bool
) -> None:
    matrix = (32 * words, rows) if transposed else (rows, 32 * words)
    weight, masks = _pruned(pattern, (experts, *matrix) if experts else matrix, transposed)
    found = pack(weight, masks, transposed)
    assert found.layout is not None or found.reason
    if found.layout is not None:
        found.layout.check(found.tensors)
        again = parse_layout(found.layout.to_dict())
        assert again == found.layout
        back = again.unpack(found.tensors)
        assert back.shape == weight.shape and torch.equal(back.view(torch.int16), weight.view(torch.int16))
        described = {suffix: (tuple(t.shape), t.dtype) for suffix, t in found.tensors.items()}
        assert described == {suffix: (s, dtype or weight.dtype) for suffix, (s, dtype) in again.parts().items()}
    assert found.bytes <= size_of(weight)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("shape", [(64, 32), (3, 32, 64)])
def test_two_of_four_takes_nine_sixteenths(shape: tuple[int, ...], transposed: bool) -> None:
    weight, masks = _pruned("2:4", shape, transposed)
    found = pack(weight, masks, transposed)
    assert found.layout is not None and found.layout.name == "2:4"
    assert found.bytes * 16 == 9 * size_of(weight)


def test_a_bitmap_takes_its_values_and_a_bit_for_each_weight() -> None:
    weight, masks = _pruned("unstructured", (24, 40))
    found = pack(weight, masks)
    assert found.bytes == 24 * 40 // 2 * 2 + 24 * 40 // 8 and found.reason is None


@pytest.mark.parametrize("name", ["2:4", "colblock:4x8"])
def test_a_product_with_the_packed_weight_is_that_of_the_dense_one(name: str) -> None:
    weight, masks = _pruned(name, (12, 64), dtype=torch.float32)
    found, inputs, bias = pack(weight, masks), torch.randn(2, 3, 64), torch.randn(12)
    assert found.layout is not None
    expected = torch.nn.functional.linear(inputs, weight, bias)
    assert torch.allclose(found.layout.linear(inputs, found.tensors, bias), expected, atol=1e-5)


def test_a_pattern_in_another_order_of_the_columns_is_stored_with_the_order() -> None:
    order = torch.randperm(64, generator=torch.Generator().manual_seed(1))
    ordered, (mask,) = _pruned("2:4", (8, 64), dtype=torch.float32)
    back = order.argsort()
    weight, placed = ordered[:, back], Mask(mask.kept[:, back], mask.pattern, order)
    found = pack(weight, [placed])
    assert found.layout is not None and found.layout.name == "2:4"
    assert torch.equal(found.layout.unpack(found.tensors), weight)
    inputs = torch.randn(5, 64)
    assert torch.allclose(found.layout.linear(inputs, found.tensors, None), inputs @ weight.T, atol=1e-5)


def test_a_number_of_inputs_that_the_layout_cannot_hold_is_said() -> None:
    weight, masks = _pruned("2:4", (8, 48))
    found = pack(weight, masks)
    assert found.layout is not None and found.layout.name == "bitmap"
    assert found.reason == "its 48 inputs are no multiple of 32"


@pytest.mark.parametrize(
    ("pattern", "sparsity", "reason"),
    [("dense", 0.0, "nothing was removed"), ("unstructured", 0.03, "as bitmap it would take")],
)
def test_what_does_not_pay_stays_dense_with_the_reason(pattern: str, sparsity: float, reason: str) -> None:
    parsed, weight = parse_pattern(pattern), torch.randn(16, 32).to(torch.bfloat16)
    mask = Mask(parsed.select(weight.float().abs(), sparsity), parsed)
    found = pack(apply_mask(weight, mask.kept), [mask])
    assert found.layout is None and reason in str(found.reason) and found.bytes == size_of(weight)


def test_experts_of_different_patterns_share_a_bitmap() -> None:
    weight, (first, _) = _pruned("2:4", (2, 8, 32))
    other = parse_pattern("1:4")
    second = Mask(other.select(weight[1].float().abs(), 0.75), other)
    weight[1] = apply_mask(weight[1], second.kept)
    found = pack(weight, [first, second])
    assert found.layout is not None and found.layout.name == "bitmap" and "different patterns" in str(found.reason)
    assert torch.equal(found.layout.unpack(found.tensors), weight)


@pytest.mark.parametrize("pattern", ["2:4", "colblock:4x8"])
def test_a_mask_that_breaks_its_pattern_is_refused(pattern: str) -> None:
    kept = torch.ones(8, 32, dtype=torch.bool)
    kept[0, 0] = False
    with pytest.raises(CrepeError, match=f"breaks pattern {pattern} in"):
        pack(torch.randn(8, 32), [Mask(kept, parse_pattern(pattern))])


def test_matrices_of_experts_lie_below_each_other() -> None:
    tensor = torch.arange(24).reshape(2, 3, 4)
    assert torch.equal(as_matrix(tensor, True)[:4], tensor[0].T)
    assert torch.equal(from_matrix(as_matrix(tensor, True), (2, 3, 4), True), tensor)


@pytest.mark.parametrize("order", [None, torch.arange(64).flip(0)])
def test_packing_some_rows_at_once_packs_the_same(order: torch.Tensor | None, monkeypatch: pytest.MonkeyPatch) -> None:
    weight, (mask,) = _pruned("2:4", (7, 64))
    mask = Mask(mask.kept, mask.pattern, order)
    whole = pack(weight, [mask]).tensors
    monkeypatch.setattr("crepe.checkpoint.packing._WEIGHTS_AT_ONCE", 3 * 64)
    parts = pack(weight, [mask]).tensors
    assert whole.keys() == parts.keys() and all(torch.equal(whole[key], parts[key]) for key in whole)
