"""EfficientNet-Lite: depth-wise separable blocks with ReLU6 and without squeeze-and-excitation.

Structure: Tan and Le 2019, table 1, and the Lite variant that TensorFlow published. Padding is TensorFlow's `same`,
which pads strided convolutions more at the end than at the beginning; the weights were trained with it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from crepe.vision.nets.base import NETS

# (expansion, width, repeats, stride, kernel) of each stage
_STAGES = (
    (1, 16, 1, 1, 3),
    (6, 24, 2, 2, 3),
    (6, 40, 2, 2, 5),
    (6, 80, 3, 2, 3),
    (6, 112, 3, 1, 5),
    (6, 192, 4, 2, 5),
    (6, 320, 1, 1, 3),
)


class SameConv2d(nn.Conv2d):
    """A convolution whose output is ceil(input / stride) long."""

    def padded(self, x: Tensor) -> Tensor:
        """The input as the convolution without padding sees it."""
        high, wide = (_needed(x.shape[2 + i], self.kernel_size[i], self.stride[i]) for i in (0, 1))
        return F.pad(x, (wide // 2, wide - wide // 2, high // 2, high - high // 2)) if high or wide else x

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.padded(x))


def _needed(length: int, kernel: int, stride: int) -> int:
    """Zeros to add along one axis."""
    return max((-(-length // stride) - 1) * stride + kernel - length, 0)


def _conv(inputs: int, width: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> SameConv2d:
    return SameConv2d(inputs, width, kernel, stride, groups=groups, bias=False)


def _norm(width: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(width, eps=1e-3, momentum=0.01)


class LiteBlock(nn.Module):
    """Expand (1 x 1), filter each channel (depth-wise), project (1 x 1); the input is added where shapes agree."""

    def __init__(self, inputs: int, width: int, expansion: int, kernel: int, stride: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        if expansion != 1:
            self._expand_conv = _conv(inputs, hidden)
            self._bn0 = _norm(hidden)
        self._depthwise_conv = _conv(hidden, hidden, kernel, stride, groups=hidden)
        self._bn1 = _norm(hidden)
        self._project_conv = _conv(hidden, width)
        self._bn2 = _norm(width)
        self.expands = expansion != 1
        self.adds = stride == 1 and inputs == width

    def forward(self, x: Tensor) -> Tensor:
        """(batch, inputs, h, w) -> (batch, width, h / stride, w / stride)."""
        inner = F.relu6(self._bn0(self._expand_conv(x))) if self.expands else x
        inner = F.relu6(self._bn1(self._depthwise_conv(inner)))
        inner = self._bn2(self._project_conv(inner))
        return inner + x if self.adds else inner  # type: ignore[no-any-return]


class EfficientNetLite(nn.Module):
    """EfficientNet-Lite0."""

    def __init__(self, classes: int = 1000) -> None:
        super().__init__()
        self._conv_stem = _conv(3, 32, 3, 2)
        self._bn0 = _norm(32)
        self._blocks = nn.ModuleList(_blocks(32))
        self._conv_head = _conv(320, 1280)
        self._bn1 = _norm(1280)
        self._fc = nn.Linear(1280, classes)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, 3, h, w) -> logits (batch, classes)."""
        x = F.relu6(self._bn0(self._conv_stem(x)))
        for block in self._blocks:
            x = block(x)
        x = F.relu6(self._bn1(self._conv_head(x)))
        return self._fc(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))  # type: ignore[no-any-return]


def _blocks(inputs: int) -> list[LiteBlock]:
    blocks = []
    for expansion, width, repeats, stride, kernel in _STAGES:
        for repeat in range(repeats):
            blocks.append(LiteBlock(inputs, width, expansion, kernel, 1 if repeat else stride))
            inputs = width
    return blocks


NETS.add("efficientnet-lite0", EfficientNetLite)
