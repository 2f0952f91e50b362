"""The identities of the refactorisation: blocks equal the convolution, packed equals masked."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import conv2d

from crepe.vision.diagonal import Window, depthwise_by_blocks, diagonal_blocks, pack_taps, packed_depthwise
from crepe.vision.taps import select_taps

WINDOWS = [Window(), Window((2, 2), (1, 1)), Window((1, 2), (2, 0), (2, 1))]


def _layer(channels: int, kernel: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(channels)
    return torch.randn(2, channels, 9, 11, generator=generator), torch.randn(channels, 1, *kernel, generator=generator)


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("channels", [4, 6, 8])
def test_blocks_are_the_depthwise_convolution(channels: int, window: Window) -> None:
    images, weight = _layer(channels, (3, 2))
    expected = conv2d(images, weight, None, window.stride, window.padding, window.dilation, channels)
    torch.testing.assert_close(depthwise_by_blocks(images, weight, 4, window), expected)


def test_every_column_of_a_block_holds_one_weight() -> None:
    _, weight = _layer(8, (3, 3))
    blocks = diagonal_blocks(weight, 4)
    assert blocks.shape == (2, 4, 36) and bool(((blocks != 0).sum(1) == 1).all())


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("channels", [4, 6, 8])
@pytest.mark.parametrize("sparsity", [0.0, 0.6, 0.8])
def test_packed_columns_are_the_masked_convolution(channels: int, window: Window, sparsity: float) -> None:
    images, weight = _layer(channels, (3, 2))
    kept = select_taps(weight, sparsity, 4)
    packed = pack_taps(weight, kept, 4)
    assert packed.values.shape == (-(-channels // 4), 24 - int(24 * sparsity))
    expected = conv2d(images, weight * kept, None, window.stride, window.padding, window.dilation, channels)
    torch.testing.assert_close(packed_depthwise(images, packed, window), expected)


def test_groups_that_are_not_balanced_are_filled_up_with_zeros() -> None:
    images, weight = _layer(8, (3, 3))
    kept = torch.rand(weight.shape, generator=torch.Generator().manual_seed(0)) > 0.6
    packed = packed_depthwise(images, pack_taps(weight, kept, 4))
    torch.testing.assert_close(packed, conv2d(images, weight * kept, groups=8))
