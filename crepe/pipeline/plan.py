"""The plan of a run, made on the meta device before anything is touched: blocks, tensors, memory, disk, time."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from crepe.allocation import ALLOCATIONS, Budget
from crepe.allocation.bounds import parse_bounds
from crepe.calibration.self_text import cache_bytes
from crepe.errors import CrepeError, UsageError
from crepe.masks.pattern import Pattern
from crepe.models.blocks import Block, find_blocks
from crepe.models.load import parse_device
from crepe.models.views import UNKNOWN_LAYOUT, Inventory, Skipped, View, inventory, matches, outside
from crepe.models.wide import wide_bytes, wide_products
from crepe.recipe import Choices, Recipe
from crepe.refine import Refinement

# Products with the Gram matrix that a refinement of one matrix comes to, about.
_SOLVES = 8
# Time of a block to that of its products, about: attention, norms, casts, a small optimiser (SmolLM2 on a CPU).
_BESIDES = 2.0
# Sides of the product that the speed is measured on, at most.
_LONGEST = 2048
# transformers, torch and Python themselves, resident before any weight is read.
_BASE_BYTES = 600 << 20


@dataclass(frozen=True)
class Plan:
    """blocks and inventories go together; without a block list the whole model is the only block.

    sequential: each block sees what the pruned ones before it produce.
    """

    blocks: list[Block]
    inventories: list[Inventory]
    outside: list[Skipped]
    notes: list[str]
    sequential: bool = False

    @property
    def views(self) -> list[View]:
        return [view for found in self.inventories for view in found.views]

    @property
    def skipped(self) -> list[Skipped]:
        return [*(s for found in self.inventories for s in found.skipped), *self.outside]

    @property
    def shapes(self) -> dict[str, tuple[int, int]]:
        return {view.name: view.shape for view in self.views}

    def budget(self, choices: Choices) -> Budget:
        """What the allocation divides. Raises UsageError for bounds that cannot be read or name nothing."""
        bounds = parse_bounds(choices.recipe.bounds, self.shapes)
        return Budget(shapes=self.shapes, sparsity=choices.sparsity, pattern=choices.pattern, bounds=bounds)

    def as_one_block(self, model: Any, choices: Choices, where: str) -> Plan:
        """The plan for a model whose forward does not enter its blocks in order."""
        return _plan_over(model, choices, [], f"the forward does not pass the blocks in order (at {where})")


def make_plan(model: Any, choices: Choices) -> Plan:
    """Sort the tensors of `model`, which may be on the meta device.

    Raises:
        CrepeError: nothing to prune, or a tensor that the pattern does not fit. UsageError: --exclude or
            --include that matches nothing, or a pipeline that needs blocks where there are none.
    """
    found = find_blocks(model)
    if found and any(matches(s.name, choices.recipe.include) for s in outside(model, found)):
        return _plan_over(model, choices, [], "--include names tensors outside the repeated blocks")
    return _plan_over(model, choices, found, "no list of repeated blocks found")


def _plan_over(model: Any, choices: Choices, found: list[Block], why_not: str) -> Plan:
    recipe = choices.recipe
    blocks = found or [Block("", model)]
    if not found:
        # Outside the repeated blocks only what is asked for is pruned, also where the model is walked as one.
        repeated = find_blocks(model)
        kept_out = {s.name: "outside the repeated blocks" for s in outside(model, repeated)} if repeated else {}
        kept_out = {name: why for name, why in kept_out.items() if not matches(name, recipe.include)}
    else:
        kept_out = {}
    head = model.get_output_embeddings()
    tied = getattr(model, "all_tied_weights_keys", None) or {}
    inventories = [inventory(block, head, recipe.include, recipe.exclude, tied, kept_out) for block in blocks]
    notes = [] if found else [f"{why_not}: one full forward with the whole model in memory"]
    left = outside(model, found) if found else []
    plan = Plan(blocks, inventories, left, [*notes, *_unread(inventories)], choices.sequential and bool(found))
    if not found and (recipe.pipeline == "sequential" or choices.fits_blocks):
        raise UsageError(
            f"{why_not}, so the pipeline cannot be sequential: use --pipeline one-pass, without refinements of blocks"
        )
    if not found and choices.structured:
        raise CrepeError(f"pattern {choices.pattern} needs repeated blocks: {why_not}")
    _require_matches(model, recipe)
    _require_fit(plan, choices.pattern)
    # The rule that needs no look at the model says whether the budget can be met at all.
    ALLOCATIONS.get("uniform").divide({}, plan.budget(choices))
    return plan


def _unread(inventories: list[Inventory]) -> list[str]:
    """A note where much of the model stays dense because crepe cannot tell how its tensors are laid out."""
    left = sum(math.prod(s.shape) for found in inventories for s in found.skipped if UNKNOWN_LAYOUT in s.reason)
    pruned = sum(math.prod(view.shape) for found in inventories for view in found.views)
    if left <= 0.05 * pruned:
        return []
    return [f"{left / (left + pruned):.0%} of the blocks' weights stay dense: their tensors have {UNKNOWN_LAYOUT}"]


def _require_matches(model: Any, recipe: Recipe) -> None:
    import fnmatch

    names = [name for name, _ in model.named_parameters()]
    for flag, patterns in (("--include", recipe.include), ("--exclude", recipe.exclude)):
        for pattern in patterns:
            if not fnmatch.filter(names, pattern):
                raise UsageError(f"{flag} {pattern!r} matches no parameter: names look like {names[len(names) // 2]!r}")


def _require_fit(plan: Plan, pattern: Pattern) -> None:
    if not plan.views:
        raise CrepeError("nothing to prune: the model has no weight matrix that crepe can read")
    for view in plan.views:
        reason = pattern.obstacle(view.shape)
        if reason:
            raise CrepeError(
                f"pattern {pattern} does not fit {view.name!r} of shape {view.shape}: {reason}; "
                "choose another pattern or leave the tensor out with --exclude"
            )


@dataclass(frozen=True)
class Estimate:
    """What a run is expected to need, in bytes and seconds."""

    memory: int
    disk: int
    seconds: float


def estimate(model: Any, plan: Plan, choices: Choices, in_memory: bool) -> Estimate:
    """Rough needs of a run; the speed is that of short matrix products on this machine, in the model's dtype."""
    recipe = choices.recipe
    tied = getattr(model, "all_tied_weights_keys", None) or {}  # on the meta device they are tensors of their own
    size = sum(p.numel() * p.element_size() for name, p in model.named_parameters() if name not in tied)
    blocks = [sum(p.numel() * p.element_size() for p in b.module.parameters()) for b in plan.blocks]
    largest = max(shape[0] * shape[1] for shape in plan.shapes.values())
    tokens = recipe.samples * recipe.seqlen
    hidden = getattr(model.config.get_text_config(), "hidden_size", 1024)
    # Inputs and outputs of one block; with a dense stream its inputs and the targets as well.
    activations = tokens * hidden * model.dtype.itemsize * (4 if choices.fits_blocks else 2)
    grams = 4 * max(sum(v.shape[1] ** 2 for v in found.views) for found in plan.inventories) if _grams(choices) else 0
    # In float32: the weights as they were, as they are and at their best, gradients and two moments.
    fit = 24 * max(sum(p.numel() for p in b.module.parameters()) for b in plan.blocks) if choices.fits_blocks else 0
    pruning = 5 * 4 * largest + activations + grams + fit
    writing = cache_bytes(model, recipe.samples, recipe.seqlen) if recipe.calibration == "self" else 0
    wide = wide_bytes(model, parse_device(recipe.device), recipe.batch_size * recipe.seqlen)
    memory = _BASE_BYTES + (size if in_memory else max(blocks)) + max(pruning, writing) + wide
    return Estimate(memory, size, _seconds(model, plan, choices, tokens))


def _grams(choices: Choices) -> bool:
    return "gram" in choices.needs | choices.allocation.needs


def _seconds(model: Any, plan: Plan, choices: Choices, tokens: int) -> float:
    """Forwards, Gram matrices, solvers and steps of a fit, each by its operations."""
    recipe, pruned = choices.recipe, sum(out * inputs for out, inputs in plan.shapes.values())
    speed, exact = (_matmul_speed(dtype, plan, recipe) for dtype in (model.dtype, torch.float32))
    passes = 1 + plan.sequential + choices.fits_blocks + (choices.allocation.measure is not None)
    steps = recipe.refit_steps * min(recipe.batch_size, recipe.samples) * recipe.seqlen if choices.fits_blocks else 0
    seconds = _BESIDES * (2.0 * tokens * passes + 6.0 * steps) * pruned / speed + pruned * 4e-8
    if _grams(choices):
        squares = sum({(v.owner, v.shape[1]): v.shape[1] ** 2.0 for f in plan.inventories for v in f.views}.values())
        solved = sum(isinstance(found, Refinement) for found in choices.refinements.values())
        solves = _SOLVES * solved * sum(2.0 * out * inputs**2 for out, inputs in plan.shapes.values())
        seconds += (2.0 * tokens * squares + solves) / exact
    return seconds


def _matmul_speed(dtype: torch.dtype, plan: Plan, recipe: Recipe) -> float:
    """Multiply-add operations per second times two, of a batch through the largest matrix, or through a part of it."""
    device = parse_device(recipe.device)
    sizes = (recipe.batch_size * recipe.seqlen, *max(plan.shapes.values(), key=math.prod))
    tokens, outputs, inputs = (min(size, _LONGEST) for size in sizes)
    left = torch.ones(tokens, inputs, dtype=dtype, device=device)
    right = torch.ones(outputs, inputs, dtype=dtype, device=device)
    with wide_products(device):
        functional.linear(left, right).sum().item()
        start = time.perf_counter()
        for _ in range(3):
            result = functional.linear(left, right)
        result.sum().item()
    return 3 * 2 * tokens * outputs * inputs / (time.perf_counter() - start)
