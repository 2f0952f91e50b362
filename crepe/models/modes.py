"""Evaluation mode for as long as it is needed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """In evaluation mode inside; afterwards every module is in its own mode, by its name: a cut may replace modules."""
    training = {name: module.training for name, module in model.named_modules()}
    try:
        model.eval()
        yield
    finally:
        for name, module in model.named_modules():
            module.training = training.get(name, module.training)
