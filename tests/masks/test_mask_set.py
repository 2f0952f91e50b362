"""Mask sets: bit packing round trip, check, count, combine."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from crepe.errors import CrepeError
from crepe.masks import Mask, MaskSet, NofM, Unstructured
from crepe.masks.mask_set import pack_bits, unpack_bits


def _mask(*kept: bool) -> Mask:
    return Mask(torch.tensor([list(kept)]), Unstructured())


@given(st.lists(st.booleans(), min_size=0, max_size=70))
def test_bits_round_trip(bits: list[bool]) -> None:
    mask = torch.tensor(bits, dtype=torch.bool)
    packed = pack_bits(mask)
    assert packed.numel() == -(-len(bits) // 8)
    assert torch.equal(unpack_bits(packed, (len(bits),)), mask)


def test_bit_order_is_little_endian() -> None:
    assert pack_bits(torch.tensor([True] + [False] * 8 + [True])).tolist() == [1, 2]


def test_save_and_load(tmp_path: Path) -> None:
    masks = MaskSet({"a": Mask(NofM(2, 4).select(torch.rand(3, 8), 0.5), NofM(2, 4)), "b": _mask(True, False, True)})
    masks.save(tmp_path / "masks.safetensors")
    found = MaskSet.load(tmp_path / "masks.safetensors")
    assert {n: (m.pattern, m.kept.tolist()) for n, m in found.items()} == {
        n: (m.pattern, m.kept.tolist()) for n, m in masks.items()
    }
    assert found.sparsity == masks.sparsity


def test_count_and_combine() -> None:
    first, second = MaskSet({"a": _mask(True, True, False, False)}), MaskSet({"a": _mask(True, False, True, False)})
    assert first["a"].zeros == 2 and first.sparsity == 0.5
    assert first.intersect(second)["a"].kept.tolist() == [[True, False, False, False]]
    assert first.union(second)["a"].kept.tolist() == [[True, True, True, False]]
    with pytest.raises(CrepeError, match="differ in shape"):
        first.union(MaskSet({"a": _mask(True)}))


def test_check_names_the_tensor() -> None:
    broken = MaskSet({"layer.weight": Mask(torch.ones(1, 4, dtype=torch.bool), NofM(2, 4))})
    with pytest.raises(CrepeError, match=r"layer.weight.*2:4.*1 groups"):
        broken.check()


@pytest.mark.parametrize("content", [b"", b"garbage that is no safetensors file"])
def test_unreadable_files_are_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "masks.safetensors"
    path.write_bytes(content)
    with pytest.raises(CrepeError, match=r"masks\.safetensors"):
        MaskSet.load(path)
