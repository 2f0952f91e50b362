"""Statistics of a model that stays dense: one pass, nothing pruned."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from crepe.calibration.statistics import ChannelSums
from crepe.pipeline.capture import InputRecorder
from crepe.pipeline.plan import Plan
from crepe.pipeline.walk import Walk

_BATCH = 8


def dense_sums(model: Any, plan: Plan, rows: Tensor) -> dict[str, ChannelSums]:
    """Channel sums of every view of `plan` over `rows` (count, seqlen); the model is in memory.

    Raises:
        OutOfOrder: the forward does not pass the blocks in order.
    """
    recorder = InputRecorder(plan.views)
    walk = Walk(model, plan.blocks, list(torch.split(rows, _BATCH)))
    with walk.started(), recorder, torch.no_grad():
        for block in plan.blocks:
            walk.advance(block)
    return recorder.sums
