"""Augmentation on pixel values: random crop and flip, what every recipe for small images does."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

# Images are padded by this share of their side before the crop: 4 pixels of 32.
_MARGIN = 8


def crop_and_flip(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Each image shifted by up to an eighth of its side, with zeros (the mean colour) moving in, and flipped or not.

    pixels: (count, channels, height, width), anywhere; returns the same shape there. The draws are made on the CPU, so
    that they are the same everywhere.
    """
    count, _, height, width = pixels.shape
    down, right = height // _MARGIN, width // _MARGIN
    padded = F.pad(pixels, (right, right, down, down))
    top = torch.randint(2 * down + 1, (count,), generator=generator)
    left = torch.randint(2 * right + 1, (count,), generator=generator)
    flip = torch.rand(count, generator=generator) < 0.5
    rows = top[:, None] + torch.arange(height)
    columns = left[:, None] + torch.where(flip[:, None], torch.arange(width).flip(0), torch.arange(width))
    rows, columns = rows.to(pixels.device), columns.to(pixels.device)
    index = torch.arange(count, device=pixels.device)[:, None, None]
    return padded.permute(0, 2, 3, 1)[index, rows[:, :, None], columns[:, None]].permute(0, 3, 1, 2).contiguous()
