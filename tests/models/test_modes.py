"""Evaluation mode ends where it began, module by module."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import crepe
from crepe.models.modes import evaluating
from families import tiny_model


def test_every_module_is_in_its_own_mode_again_even_after_an_error() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout()).train()
    model[1].eval()
    with pytest.raises(ValueError, match="stop"), evaluating(model):
        assert not any(module.training for module in model.modules())
        raise ValueError("stop")
    assert [module.training for module in model.modules()] == [True, True, False]


def test_pruning_in_memory_leaves_the_modes() -> None:
    model = tiny_model("llama").train()
    model.model.layers[0].eval()
    crepe.prune(model, rows=torch.randint(3, 100, (4, 16)))
    assert model.training and model.model.layers[1].training and not model.model.layers[0].mlp.training
