"""Refit: after masking, fit what survives of a block to the dense model's outputs of that block.

The inputs are those that the pruned blocks before it produce, the targets what the dense model has there, so a block
also makes up for errors that arrive. Block-wise reconstruction of the surviving weights: Guo et al. 2024 (EBFT); that a
whole non-linear unit is better fitted than single matrices: "Free Lunch" (arXiv 2510.14444).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from crepe.errors import CrepeError
from crepe.refine.base import REFINEMENTS, BlockFit, BlockRefinement, Fit

# Rate of Adam as a share of the size of each parameter's surviving weights, so that it means the same for every model.
RATE = 0.016
_BETAS = (0.9, 0.95)
# Every so many batches one is held out, at least one where there are two.
_HELD = 8
# Times that the held-out error is looked at on the way.
_LOOKS = 4


def refit(block: BlockFit) -> Fit:
    """Adam on the surviving weights, cosine rate, zeros held at zero; the best point by batches that were held out.

    It is never worse than where it began: where nothing improves on the held-out batches, the weights stay.
    """
    training, held = split(len(block.targets))
    before = _error(block, block.parameters, held)
    if not math.isfinite(before):
        raise CrepeError("a block's outputs hold NaN or infinite values: the model is broken, or try --dtype float32")
    best, after = block.parameters, before
    for parameters in _descend(block, training):
        found = _error(block, parameters, held)
        if found < after:
            best, after = {name: value.detach().clone() for name, value in parameters.items()}, found
    return Fit(best, before, after)


def split(count: int) -> tuple[list[int], list[int]]:
    """Batch numbers to fit and to hold out. A single batch is both."""
    if count == 1:
        return [0], [0]
    held = range(min(_HELD, count) - 1, count, _HELD)
    return [i for i in range(count) if i not in held], list(held)


def loss(output: Tensor, target: Tensor) -> Tensor:
    """Mean over tokens of |y - t|^2 / |t|^2, a scalar: every token counts the same, whatever its size, so that the few
    tokens with massive activations do not own the fit. output, target: (batch, tokens, hidden)."""
    difference = (output.float() - target.float()).square().sum(-1)
    size = target.float().square().sum(-1)
    return (difference / (size + 1e-6 * size.mean() + 1e-20)).mean()


def _error(block: BlockFit, parameters: Mapping[str, Tensor], batches: list[int]) -> float:
    with torch.no_grad():
        losses = [float(loss(block.run(parameters, i), block.targets[i])) for i in batches]
    return sum(losses) / len(losses)


def _descend(block: BlockFit, batches: list[int]) -> Iterator[Mapping[str, Tensor]]:
    """The parameters after each part of the steps; they go on changing."""
    parameters = {name: value.clone().requires_grad_(True) for name, value in block.parameters.items()}
    groups = [{"params": [value], "lr": RATE * size(value)} for value in parameters.values()]
    optimiser = torch.optim.Adam(groups, betas=_BETAS, fused=True)  # several times faster on a CPU
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: rate(step, block.steps))
    every = max(block.steps // _LOOKS, 1)
    for step, batch in enumerate(_batches(batches, block.steps, block.seed), 1):
        optimiser.zero_grad()
        loss(block.run(parameters, batch), block.targets[batch]).backward()  # type: ignore[no-untyped-call]
        _hold_zeros(parameters, block.kept)
        optimiser.step()
        schedule.step()
        if step % every == 0 or step == block.steps:
            yield parameters


def size(parameter: Tensor) -> float:
    """Root mean square of the entries that are not zero; 0 where all are, as in a bias that nothing needed so far."""
    values = parameter.detach()
    return float((values.square().sum() / values.count_nonzero().clamp(min=1)).sqrt())


def _hold_zeros(parameters: Mapping[str, Tensor], kept: Mapping[str, Tensor]) -> None:
    """Without a gradient and without weight decay Adam leaves a weight where it is."""
    for name, mask in kept.items():
        gradient = parameters[name].grad
        if gradient is not None:
            gradient *= mask


def rate(step: int, steps: int) -> float:
    """Share of the full rate: a short linear warm-up, then half a cosine down to nothing."""
    warm = max(steps // 20, 1)
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(steps - warm, 1)))


def _batches(batches: list[int], steps: int, seed: int) -> Iterator[int]:
    """`steps` batch numbers: all of them in random order, again and again."""
    generator = torch.Generator().manual_seed(seed)
    order: list[int] = []
    for _ in range(steps):
        order = order or torch.randperm(len(batches), generator=generator).tolist()
        yield batches[order.pop()]


REFINEMENTS.add("refit", BlockRefinement(function=refit, needs=frozenset()))
