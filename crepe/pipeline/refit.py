"""Block refinements in the pipeline: the block as a function of its parameters, and the fitted values written back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from crepe.masks import Mask, apply_mask
from crepe.models.blocks import Block
from crepe.models.views import View
from crepe.pipeline.walk import Call, Walk
from crepe.refine import BlockFit, BlockRefinement, Fit


def hidden_of(output: Any) -> Tensor:
    """The hidden states of a block's output, which some families give with more behind them."""
    found: Tensor = output[0] if isinstance(output, tuple) else output
    return found


def fit_block(
    model: Any,
    block: Block,
    walk: Walk,
    views: Sequence[View],
    masks: Mapping[str, Mask],
    targets: Sequence[Tensor],
    refinement: BlockRefinement,
    steps: int,
    seed: int,
) -> Fit:
    """Fit the surviving weights of an onloaded block in place. masks: by view name; targets: the dense outputs."""
    module = block.module
    tied = getattr(model, "all_tied_weights_keys", None) or {}
    prefix = block.name + "." if block.name else ""
    # What is another tensor under a second name belongs to that one's block.
    own = {n: p for n, p in module.named_parameters() if p.is_floating_point() and prefix + n not in tied}
    values = {name: parameter.detach().float() for name, parameter in own.items()}
    kept = _parameter_masks(module, views, masks)
    run = _runner(block, walk)
    with torch.enable_grad():
        fit = refinement.function(BlockFit(values, kept, run, targets, steps, seed))
    if fit.after < fit.before:
        _write_back(module, fit.parameters, kept)
    return fit


def _parameter_masks(module: nn.Module, views: Sequence[View], masks: Mapping[str, Mask]) -> dict[str, Tensor]:
    """Masks in the shape of the parameters, which may be transposed or hold several matrices. Kept weights that are
    zero already stay so."""
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    found: dict[str, Tensor] = {}
    for view in views:
        name = names[id(view.parameter)]
        if name not in found:
            found[name] = torch.ones_like(view.parameter, dtype=torch.bool)
        view.part_of(found[name]).copy_(masks[view.name].kept & (view.matrix() != 0).to(masks[view.name].kept.device))
    return found


def _runner(block: Block, walk: Walk) -> Callable[[Mapping[str, Tensor], int], Tensor]:
    """(parameters, batch number) -> hidden states, in the model's dtype for products and float32 for the rest."""
    calls = list(walk.calls(block))
    original = _Original(block.module, walk)
    parameter = next(block.module.parameters())
    half = parameter.dtype in (torch.bfloat16, torch.float16)

    def run(parameters: Mapping[str, Tensor], batch: int) -> Tensor:
        named = {f"module.{name}": value for name, value in parameters.items()}
        call = calls[batch]
        exact = tree_map(_exact, (call.args, call.kwargs))
        with torch.autocast(parameter.device.type, torch.bfloat16, enabled=half):
            output = torch.func.functional_call(original, named, (Call(call.block, *exact),))
        return hidden_of(output)

    return run


def _exact(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value


class _Original(nn.Module):
    """The block with its own forward, which the walk has replaced by one that stops."""

    def __init__(self, module: nn.Module, walk: Walk) -> None:
        super().__init__()
        self.module = module
        self._walk = walk

    def forward(self, call: Call) -> Any:
        return self._walk.forward(call)


def _write_back(module: nn.Module, fitted: Mapping[str, Tensor], kept: Mapping[str, Tensor]) -> None:
    for name, parameter in module.named_parameters():
        if name in fitted:
            value = fitted[name].to(parameter.dtype)
            parameter.detach().copy_(apply_mask(value, kept[name]) if name in kept else value)
