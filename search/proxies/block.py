"""Output error of whole blocks on dense inputs: what a matrix loses, another of its block may hide or amplify."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from crepe.criteria.coefficients import Coefficients
from crepe.errors import CrepeError
from crepe.models.blocks import Block
from crepe.models.views import View
from crepe.pipeline.walk import Call, Walk
from crepe.search.proxies.base import PROXIES, Proxy, Score
from crepe.search.subject import Subject

# Blocks that are tried, spread evenly over the depth, and calibration rows for each.
_BLOCKS = 6
_ROWS = 2


@dataclass
class _Trial:
    block: Block
    views: list[View]
    call: Call
    dense: Tensor
    change: float


def _prepare(subject: Subject) -> Score:
    trials = _record(subject)

    def score(coefficients: Coefficients) -> float:
        return sum(_error(subject, trial, coefficients) for trial in trials) / len(trials)

    return score


def _record(subject: Subject) -> list[_Trial]:
    """Inputs and dense outputs of the chosen blocks. change: energy of what the block adds to its input."""
    plan = subject.plan
    if len(plan.blocks) < 2:
        raise CrepeError("the proxy 'block' needs a model with repeated blocks: choose another --proxy")
    count = min(_BLOCKS, len(plan.blocks))
    chosen = {plan.blocks[(2 * i + 1) * len(plan.blocks) // (2 * count)].name for i in range(count)}
    walk = Walk(subject.model, plan.blocks, [subject.held[:_ROWS]])
    trials = []
    with walk.started():
        for block, found in zip(plan.blocks, plan.inventories, strict=True):
            if block.name in chosen and found.views:
                (call,), (output,) = list(walk.calls(block)), list(walk.run(block))
                dense = _tensor(output)
                change = float((dense - _tensor([*call.args, *_tensors(call.kwargs)])).float().square().sum())
                trials.append(_Trial(block, found.views, call, dense, change))
            walk.advance(block)
    return trials


def _error(subject: Subject, trial: _Trial, coefficients: Coefficients) -> float:
    with subject.masked(coefficients, trial.views), torch.no_grad():
        output = _tensor(trial.block.module(*trial.call.args, **trial.call.kwargs))
    return float((output - trial.dense).float().square().sum()) / trial.change


def _tensor(output: Any) -> Tensor:
    """The hidden states: a block's output, or the first tensor of it."""
    if isinstance(output, Tensor):
        return output
    return next(part for part in output if isinstance(part, Tensor))


def _tensors(kwargs: Mapping[str, Any]) -> list[Any]:
    return [kwargs[key] for key in ("hidden_states", *kwargs) if key in kwargs]


PROXIES.add(
    "block",
    Proxy(_prepare, "prepares 2 forward rows; a trial prunes 6 blocks and runs each over 2 rows", runs_model=True),
)
