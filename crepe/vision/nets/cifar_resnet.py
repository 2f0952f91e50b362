"""ResNet for 32 x 32 images with parameter-free (option A) shortcuts (He et al. 2016, section 4.2)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from crepe.errors import UsageError
from crepe.vision.nets.base import NETS


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions and a shortcut that subsamples and pads with zero channels."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.stride = stride
        self.padding = (width - inputs) // 2

    def forward(self, x: Tensor) -> Tensor:
        """(batch, inputs, h, w) -> (batch, width, h / stride, w / stride)."""
        inner = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(inner)) + self._shortcut(x))

    def _shortcut(self, x: Tensor) -> Tensor:
        if self.stride == 1 and not self.padding:
            return x
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.padding, self.padding))


class CifarResNet(nn.Module):
    """depth = 6 n + 2: three stages of n blocks, `width`, 2 and 4 times `width` channels.

    classes: how many, or their names, by which folders of images are numbered.
    """

    def __init__(self, depth: int = 20, classes: int | Sequence[str] = 10, width: int = 16) -> None:
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise UsageError(f"depth {depth} of a CIFAR ResNet: it must be 6 n + 2, such as 20 or 56")
        count = (depth - 2) // 6
        self.label2id = {} if isinstance(classes, int) else {name: number for number, name in enumerate(classes)}
        self.conv1 = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = _stage(width, width, count, 1)
        self.layer2 = _stage(width, 2 * width, count, 2)
        self.layer3 = _stage(2 * width, 4 * width, count, 2)
        self.linear = nn.Linear(4 * width, classes if isinstance(classes, int) else len(classes))

    def forward(self, x: Tensor) -> Tensor:
        """(batch, 3, h, w) -> logits (batch, classes)."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))  # type: ignore[no-any-return]


def _stage(inputs: int, width: int, count: int, stride: int) -> nn.Sequential:
    first = BasicBlock(inputs, width, stride)
    return nn.Sequential(first, *(BasicBlock(width, width, 1) for _ in range(count - 1)))


NETS.add("cifar-resnet", CifarResNet)
