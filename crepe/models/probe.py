"""Experiments on a block: random weights with which everything in it matters, and whether what it returns changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from crepe.models.views import View

# Runs the block on captured inputs. Returns its output and whatever else it leaves for later blocks (an argument
# that it fills, say), in any nesting: an experiment looks at all of it.
Run = Callable[[], object]

# The change that counts as none, as a share of the change that it is held against.
_TOLERANCE = 1e-3
_TOLERANCE_HALF = 5e-2
# Larger parameters that are no matrices are tables, not factors of channels.
_FACTORS = 1 << 20


@contextmanager
def random_weights(module: nn.Module, views: Sequence[View]) -> Iterator[None]:
    """Inside, `module` has other weights, with which every channel matters; its own are not touched.

    A trained block can hide a wrong coupling: attention that is nearly even hides what heads do, a norm's weight
    near one or a bias near zero what they do to a channel.
    """
    fan_in = {id(view.parameter): view.shape[1] for view in views}
    own = [(p, p.data) for p in module.parameters() if p.is_floating_point()]
    own = [(parameter, data) for parameter, data in own if id(parameter) in fan_in or data.numel() <= _FACTORS]
    try:
        for seed, (parameter, data) in enumerate(own):
            parameter.data = _other_weights(data, fan_in.get(id(parameter)), seed)
        yield
    finally:
        for parameter, data in own:
            parameter.data = data


def _other_weights(data: Tensor, fan_in: int | None, seed: int) -> Tensor:
    """A random matrix that doubles the scale of its inputs; of anything else (no fan_in) the same with noise."""
    generator = torch.Generator(data.device).manual_seed(seed)
    noise = torch.randn(data.shape, generator=generator, dtype=data.dtype, device=data.device)
    if fan_in is not None:
        return noise.mul_(2 / fan_in**0.5)
    scale = data.float().square().mean().sqrt().clamp(min=1.0).to(data.dtype)
    return noise.mul_(0.3 * scale).add_(data)


def real_tensors(value: object) -> list[Tensor]:
    """All tensors of real numbers in nested containers, in order."""
    if isinstance(value, Tensor):
        return [value.detach()] if value.is_floating_point() else []
    if isinstance(value, Mapping):
        value = list(value.values())
    return [tensor for member in value for tensor in real_tensors(member)] if isinstance(value, (list, tuple)) else []


def unchanged(before: Tensor, coupled: Tensor, broken: Tensor) -> bool:
    """Medians over the elements that change at all: the residual stream has a few channels of huge values, whose
    rounding would hide everything else in a norm."""
    error, effect = distance(before, coupled), distance(before, broken)
    if bool((~torch.isfinite(coupled) & torch.isfinite(before)).any()):
        return False
    # What overflows already with nothing moved says nothing.
    error, effect = (apart[torch.isfinite(before)] for apart in (error, effect))
    if not bool((effect > 0).any()):
        return not bool((error > 0).any())
    touched = (effect > 0) | (error > 0)
    tolerance = _TOLERANCE_HALF if before.element_size() <= 2 else _TOLERANCE
    return float(error[touched].median()) <= tolerance * float(effect[touched].median())


def distance(before: Tensor, after: Tensor) -> Tensor:
    """|after - before|, also where both are infinite (masks) and where one is no number (then infinite)."""
    if before.shape != after.shape:
        return torch.full_like(before, torch.inf, dtype=torch.float32)
    apart = (after.float() - before.float()).abs().nan_to_num(nan=torch.inf, posinf=torch.inf)
    return apart.masked_fill(after == before, 0.0)
