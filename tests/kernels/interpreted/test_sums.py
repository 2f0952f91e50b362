"""Sums, windows and bitmaps on the CPU against their references, bit by bit."""

from __future__ import annotations

import pytest
import torch

from crepe.errors import CrepeError
from crepe.kernels.operations.absolute_sums import OPERATION as SUMS
from crepe.kernels.operations.bitmap_pack import OPERATION as PACK
from crepe.kernels.operations.bitmap_unpack import OPERATION as UNPACK
from crepe.kernels.operations.box_mean import OPERATION as BOX
from crepe.kernels.triton import bitmap, box_mean, sums
from pruning_cases import hard_weight

DTYPES = [torch.bfloat16, torch.float16, torch.float32]


def _weight(outputs: int, inputs: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(0)).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 40), (7, 37)])
def test_sums(shape: tuple[int, int], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sums, "ROWS", 4)
    monkeypatch.setattr(sums, "tile_of", lambda inputs, most: 32)
    weight = _weight(*shape, dtype)
    for found, expected in zip(SUMS.run(weight, backend="triton"), SUMS.run(weight, backend="torch"), strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "kernel"), [((5, 37), 3), ((2, 20), 5), ((1, 3), 7), ((4, 4), 1)])
def test_windows(shape: tuple[int, int], kernel: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(box_mean, "ROWS", 4)
    monkeypatch.setattr(box_mean, "tile_of", lambda inputs, most: 16)
    weight = _weight(*shape, dtype)
    assert torch.equal(BOX.run(weight, kernel, backend="triton"), BOX.run(weight, kernel, backend="torch"))


@pytest.mark.parametrize("kernel", [4, 11])
def test_windows_that_do_not_fit_are_refused(kernel: int) -> None:
    with pytest.raises(CrepeError, match=f"a window of {kernel} x {kernel}"):
        BOX.run(_weight(4, 4, torch.float32), kernel, backend="triton")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_bitmaps(share: float, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """More weights than a tile, and no multiple of eight."""
    monkeypatch.setattr(bitmap, "TILE", 64)
    weight = hard_weight(3, 43, dtype)
    kept = torch.rand(weight.shape, generator=torch.Generator().manual_seed(0)) < share
    values, bits = PACK.run(weight, kept, int(kept.sum()), backend="triton")
    expected = PACK.run(weight, kept, int(kept.sum()), backend="torch")
    assert torch.equal(values, expected[0]) and torch.equal(bits, expected[1])
    assert not torch.signbit(values[values == 0]).any()
    dense = UNPACK.run(values, bits, [3, 43], backend="triton")
    assert torch.equal(dense, UNPACK.run(values, bits, [3, 43], backend="torch"))
