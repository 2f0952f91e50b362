"""Tiny image models of many structures, random weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

CLASSES = 5


def hugging_face(name: str) -> Any:
    """A tiny image classifier of transformers with lively batch norms."""
    import transformers as t

    labels = {"num_labels": CLASSES}
    small = {"image_size": 32, "patch_size": 8}
    width = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    resnet = {"embedding_size": 8, "hidden_sizes": [16, 32], "depths": [2, 2]}
    made: dict[str, Callable[[], Any]] = {
        "vit": lambda: t.ViTForImageClassification(t.ViTConfig(**width, **small, **labels)),
        "deit": lambda: t.DeiTForImageClassification(t.DeiTConfig(**width, **small, **labels)),
        "resnet": lambda: t.ResNetForImageClassification(t.ResNetConfig(**resnet, layer_type="bottleneck", **labels)),
        "resnet-basic": lambda: t.ResNetForImageClassification(t.ResNetConfig(**resnet, layer_type="basic", **labels)),
        "swin": lambda: t.SwinForImageClassification(
            t.SwinConfig(
                image_size=32, patch_size=2, embed_dim=16, depths=[1, 1], num_heads=[2, 4], window_size=4, **labels
            )
        ),
        "convnext": lambda: t.ConvNextForImageClassification(
            t.ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2, **labels)
        ),
        "mobilenet-v1": lambda: t.MobileNetV1ForImageClassification(
            t.MobileNetV1Config(depth_multiplier=0.25, **labels)
        ),
        "mobilenet-v2": lambda: t.MobileNetV2ForImageClassification(
            t.MobileNetV2Config(depth_multiplier=0.35, **labels)
        ),
        "efficientnet": lambda: t.EfficientNetForImageClassification(
            t.EfficientNetConfig(
                in_channels=[32, 8],
                out_channels=[8, 16],
                kernel_sizes=[3, 5],
                depthwise_padding=[],
                strides=[1, 2],
                num_block_repeats=[1, 2],
                expand_ratios=[1, 4],
                width_coefficient=1.0,
                depth_coefficient=1.0,
                hidden_dim=1280,
                image_size=32,
                **labels,
            )
        ),
    }
    torch.manual_seed(0)
    return lively(made[name]())


HUGGING_FACE = (
    "vit",
    "deit",
    "resnet",
    "resnet-basic",
    "swin",
    "convnext",
    "mobilenet-v1",
    "mobilenet-v2",
    "efficientnet",
)


def lively(model: nn.Module) -> nn.Module:
    """Batch norms with scales, shifts and statistics that do something."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low in (
                (module.weight, 0.5),
                (module.bias, -0.5),
                (module.running_mean, -0.5),
                (module.running_var, 0.5),
            ):
                tensor.data = torch.rand(tensor.shape, generator=generator) + low
    return model.eval()


class Joined(nn.Module):
    """Two branches laid side by side, read by one convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(3, 6, 1)
        self.bn = nn.BatchNorm2d(14)
        self.last = nn.Conv2d(14, 8, 1)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn(torch.cat([self.left(x), self.right(x)], 1)))
        return self.head(torch.relu(self.last(x)).mean((2, 3)))


class Grouped(nn.Module):
    """A bottleneck around a convolution of four groups, as in ResNeXt."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(3, width, 1)
        self.grouped = nn.Conv2d(width, width, 3, padding=1, groups=4)
        self.bn = nn.BatchNorm2d(width)
        self.expand = nn.Conv2d(width, 8, 1)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn(self.grouped(torch.relu(self.reduce(x)))))
        return self.head(torch.relu(self.expand(x)).mean((2, 3)))


class Flattened(nn.Module):
    """Convolutions whose last feature map is flattened into a Linear, as in VGG."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 6, 3, padding=1)
        self.hidden, self.head = nn.Linear(6 * 4 * 4, 12), nn.Linear(12, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.second(torch.relu(self.first(x))))
        x = nn.functional.adaptive_avg_pool2d(x, 4)
        return self.head(torch.relu(self.hidden(x.flatten(1))))


class Excited(nn.Module):
    """A depth-wise separable block with squeeze and excitation."""

    def __init__(self) -> None:
        super().__init__()
        self.expand, self.depthwise = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.squeeze, self.excite = nn.Conv2d(16, 4, 1), nn.Conv2d(4, 16, 1)
        self.project, self.head = nn.Conv2d(16, 8, 1), nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.depthwise(torch.relu(self.expand(x))))
        gate = torch.sigmoid(self.excite(torch.relu(self.squeeze(x.mean((2, 3), keepdim=True)))))
        return self.head(torch.relu(self.project(x * gate)).mean((2, 3)))


class Separable(nn.Module):
    """A depth-wise separable block whose projection feeds a plain convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.expand, self.depthwise = nn.Conv2d(3, 32, 1), nn.Conv2d(32, 32, 3, padding=1, groups=32)
        self.project, self.last = nn.Conv2d(32, 8, 1), nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.project(torch.relu(self.depthwise(torch.relu(self.expand(x)))))
        return self.head(torch.relu(self.last(x)).mean((2, 3)))


class Shifted(nn.Module):
    """A sigmoid between two convolutions: a silenced channel still sends 0.5 on."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.second(torch.sigmoid(self.first(x)))).mean((2, 3)))


class FusedAttention(nn.Module):
    """One Linear for queries, keys and values, laid out and called as in timm: the fused product takes its factor from
    the width, the plain one from `scale`."""

    def __init__(self, width: int, heads: int, fused: bool) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.attn_dim = heads, width // heads, width
        self.scale, self.fused_attn = self.head_dim**-0.5, fused
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        q, k, v = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        if self.fused_attn:
            found = nn.functional.scaled_dot_product_attention(q, k, v)
        else:
            found = ((q * self.scale) @ k.transpose(-2, -1)).softmax(-1) @ v
        return self.proj(found.transpose(1, 2).reshape(batch, tokens, self.attn_dim))


class FusedBlock(nn.Module):
    def __init__(self, width: int, heads: int, fused: bool) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = FusedAttention(width, heads, fused)
        self.fc1, self.fc2 = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.fc2(nn.functional.gelu(self.fc1(self.norm2(x))))


class FusedTransformer(nn.Module):
    """Three blocks over patches of 8 x 8, no class token."""

    def __init__(self, fused: bool = True, width: int = 64, heads: int = 2) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 8, 8)
        self.blocks = nn.Sequential(*(FusedBlock(width, heads, fused) for _ in range(3)))
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.patches(x).flatten(2).transpose(1, 2)).mean(1))


PLAIN = (Joined, Grouped, Flattened, Excited, Shifted)


def plain(kind: type[nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return lively(kind())
