"""Layouts of packed weights: dense to packed and back, bit by bit, and what damaged ones say."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from crepe.errors import CrepeError
from crepe.kernels.reference import bitmap, colblock, sp24
from crepe.masks import ColBlock, NofM, Unstructured, apply_mask

SEEDS = st.integers(0, 2**16)


def _weight(seed: int, out: int, inputs: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.randn(out, inputs, generator=torch.Generator().manual_seed(seed)).to(dtype)


@given(SEEDS, st.integers(1, 9), st.integers(1, 5), st.sampled_from([torch.bfloat16, torch.float32, torch.float16]))
def test_2_of_4_comes_back(seed: int, out: int, words: int, dtype: torch.dtype) -> None:
    weight = _weight(seed, out, words * sp24.INPUTS, dtype)
    kept = NofM(2, 4).select(weight.float().abs(), 0.5)
    kept &= torch.rand(kept.shape, generator=torch.Generator().manual_seed(seed)) > 0.2  # groups of 1 and 0 as well
    values, meta = sp24.pack(weight, kept)
    sp24.check(values, meta, (out, words * sp24.INPUTS))
    assert values.numel() * values.element_size() * 2 == weight.numel() * weight.element_size()
    assert meta.numel() * 32 == weight.numel()
    _assert_same_bits(sp24.unpack(values, meta), apply_mask(weight, kept))


def test_codes_are_counted_part_by_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sp24, "_WORDS_AT_ONCE", 4)
    weight = _weight(0, 9, 64)
    values, meta = sp24.pack(weight, NofM(2, 4).select(weight.float().abs(), 0.5))
    sp24.check(values, meta, (9, 64))
    meta[0, 0] = meta[8, 1] = 0
    with pytest.raises(CrepeError, match="16 codes are no pair"):
        sp24.check(values, meta, (9, 64))


def test_2_of_4_words_are_where_the_description_says() -> None:
    """Word by word against a loop over groups that follows the text."""
    weight = _weight(0, 3, 96)
    kept = NofM(2, 4).select(weight.float().abs(), 0.5)
    meta = sp24.pack(weight, kept)[1]
    for row in range(3):
        for q in range(3):
            word = 0
            for j in range(8):
                group = q + j * 3
                low, high = kept[row, 4 * group : 4 * group + 4].nonzero().flatten().tolist()
                half = 16 * (j // 4)
                word |= low << (half + 2 * (j % 4)) | high << (half + 8 + 2 * (j % 4))
            assert int(meta[row, q]) & 0xFFFFFFFF == word


def test_a_broken_2_of_4_mask_is_refused() -> None:
    with pytest.raises(CrepeError, match="breaks pattern 2:4 in 16 groups"):
        sp24.pack(torch.ones(2, 32), torch.ones(2, 32, dtype=torch.bool))


@pytest.mark.parametrize("code", [0b0000, 0b0101, 0b0001])
def test_codes_that_2_of_4_does_not_allow_are_refused(code: int) -> None:
    """The lower position must be the smaller one. code: lower position, then the higher one, two bits each."""
    values, meta = sp24.pack(torch.ones(1, 32), NofM(2, 4).select(torch.rand(1, 32), 0.5))
    word = int(meta[0, 0]) & ~(3 | 3 << 8) | (code & 3) | (code >> 2) << 8
    meta[0, 0] = word - (1 << 32) if word >= 1 << 31 else word
    with pytest.raises(CrepeError, match="1 codes are no pair"):
        sp24.check(values, meta, (1, 32))


@given(
    SEEDS, st.integers(1, 9), st.sampled_from([1, 2, 4, 8]), st.integers(1, 6), st.sampled_from([0.0, 0.4, 0.5, 1.0])
)
def test_column_blocks_come_back(seed: int, out: int, columns: int, blocks: int, sparsity: float) -> None:
    weight, pattern = _weight(seed, out, columns * blocks), ColBlock(4, columns)
    kept = pattern.select(weight.float().abs(), sparsity)
    values, found = colblock.pack(weight, kept, pattern)
    colblock.check(values, found, pattern, (out, columns * blocks))
    assert values.numel() == int(kept.sum())
    _assert_same_bits(colblock.unpack(values, found, pattern, columns * blocks), apply_mask(weight, kept))


def test_damaged_column_blocks_are_refused() -> None:
    pattern = ColBlock(2, 4)
    values, blocks = colblock.pack(_weight(0, 4, 32), pattern.select(torch.rand(4, 32), 0.5), pattern)
    for wrong in (blocks.flip(1), blocks + 8):
        with pytest.raises(CrepeError, match=r"rise within 0\.\.7"):
            colblock.check(values, wrong, pattern, (4, 32))
    with pytest.raises(CrepeError, match="breaks pattern"):
        colblock.pack(_weight(0, 4, 32), torch.rand(4, 32) > 0.5, pattern)


@given(SEEDS, st.integers(1, 7), st.integers(1, 13), st.sampled_from([0.0, 0.5, 1.0]))
def test_bitmaps_come_back(seed: int, out: int, inputs: int, sparsity: float) -> None:
    weight = _weight(seed, out, inputs)
    kept = Unstructured().select(weight.float().abs(), sparsity)
    values, bits = bitmap.pack(weight, kept)
    bitmap.check(values, bits, (out, inputs))
    _assert_same_bits(bitmap.unpack(values, bits, (out, inputs)), apply_mask(weight, kept))


def test_damaged_bitmaps_are_refused() -> None:
    values, bits = bitmap.pack(torch.ones(3, 3), torch.ones(3, 3, dtype=torch.bool))
    with pytest.raises(CrepeError, match="the bits keep 9"):
        bitmap.check(values[:-1], bits, (3, 3))
    bits[-1] |= 2
    with pytest.raises(CrepeError, match="behind the last weight"):
        bitmap.check(values, bits, (3, 3))


def _assert_same_bits(found: torch.Tensor, expected: torch.Tensor) -> None:
    kind = {2: torch.int16, 4: torch.int32}[expected.element_size()]
    assert torch.equal(found.view(kind), expected.view(kind))
