"""Token channel selection: which hidden channels of a feed-forward part matter to class token and patches (ToaSt, ICML
2026).

    importance_c = 2 |x_cls,c| / (1 + P) + P / (1 + P) * mean_s a_s |x_s,c|

over P patches s, with a_s the attention that the class token pays them, averaged over heads. The published form takes
means over a batch and a random few of the patches at run time, so that what an image gets depends on the images beside
it (`batch_importance`). Ours is the same formula for each image with all patches (`image_importance`), averaged over
calibration images: one fixed choice, ordinary smaller matrices, and the same result for every batch.
"""

from __future__ import annotations

import torch
from torch import Tensor

CLASS_WEIGHT = 2.0
SAMPLED_SHARE = 0.02


def image_importance(
    tokens: Tensor, attention: Tensor | None = None, prefix: int = 1, class_weight: float = CLASS_WEIGHT
) -> Tensor:
    """Importance of every channel for each image: (batch, channels) float32.

    tokens: (batch, prefix + patches, channels), the class token first; further prefix tokens (distillation, registers)
    do not count. attention: (batch, prefix + patches), the class token's row averaged over heads; without it patches
    count the same. prefix 0: no class token, so the mean of |x| alone.
    """
    sizes = tokens.detach().float().abs()
    patches = sizes[:, prefix:]
    if attention is not None:
        patches = patches * attention.detach().float()[:, prefix:, None]
    if not prefix:
        return patches.mean(1)
    return _mixed(sizes[:, 0], patches.mean(1), patches.shape[1], class_weight)


def batch_importance(
    tokens: Tensor,
    sampled: Tensor,
    attention: Tensor | None = None,
    prefix: int = 1,
    class_weight: float = CLASS_WEIGHT,
) -> Tensor:
    """The published form: one importance for the whole batch, (channels,) float32. It depends on the batch.

    sampled: (n,) numbers of patches, from 0, of which some may come twice; the attention is averaged over the batch
    before it weighs them. tokens, attention: as in `image_importance`.
    """
    sizes = tokens.detach().float().abs()
    patches = sizes[:, prefix + sampled]
    if attention is not None:
        patches = patches * attention.detach().float()[:, prefix + sampled].mean(0)[None, :, None]
    if not prefix:
        return patches.mean((0, 1))
    return _mixed(sizes[:, 0].mean(0), patches.mean((0, 1)), tokens.shape[1] - prefix, class_weight)


def sample_patches(patches: int, share: float, generator: torch.Generator) -> Tensor:
    """floor(share * patches) numbers drawn with replacement, at least one; all in order where that is all of them."""
    count = max(int(share * patches + 1e-9), 1)
    if count >= patches:
        return torch.arange(patches)
    return torch.randint(patches, (count,), generator=generator)


def kept_channels(channels: int, ratio: float) -> int:
    """floor((1 - ratio) * channels), at least 1."""
    return max(int((1 - ratio) * channels + 1e-9), 1)


def top_channels(importance: Tensor, keep: int) -> Tensor:
    """(..., channels) -> the `keep` best, (..., keep) int64, rising; ties go to the lower index."""
    return importance.argsort(dim=-1, descending=True, stable=True)[..., :keep].sort(dim=-1).values


def _mixed(first: Tensor, patches: Tensor, count: int, class_weight: float) -> Tensor:
    return class_weight * first / (1 + count) + patches * count / (1 + count)
