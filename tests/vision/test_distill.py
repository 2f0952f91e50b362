"""Distillation against a naive reference, and what a network learns from another."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from torch import Tensor, nn

import crepe
from crepe.errors import CrepeError
from crepe.recipe import Recipe
from crepe.vision import train
from crepe.vision.distill import TEMPERATURE, distilled, teacher_of
from crepe.vision.images import read_images
from crepe.vision.nets.cifar_resnet import CifarResNet
from image_data import STEPS, parquet

CPU = torch.device("cpu")


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _soft(row: list[float]) -> list[float]:
    exponents = [math.exp(value / TEMPERATURE) for value in row]
    return [value / sum(exponents) for value in exponents]


def test_agrees_with_the_formula_spelt_out() -> None:
    logits, dense = 3 * _random(4, 5), 3 * _random(4, 5, seed=1)
    divergence = 0.0
    for found, wanted in zip(logits.tolist(), dense.tolist(), strict=True):
        pairs = zip(_soft(wanted), _soft(found), strict=True)
        divergence += sum(p * math.log(p / q) for p, q in pairs) / 4
    found = float(distilled(torch.tensor(2.0), logits, dense, 0.7))
    assert found == pytest.approx(0.3 * 2.0 + 0.7 * TEMPERATURE**2 * divergence, rel=1e-5)


def test_equal_outputs_leave_nothing_to_learn() -> None:
    logits = _random(4, 5).requires_grad_(True)
    loss = distilled(torch.tensor(1.0), logits, logits.detach() + 7, 1.0)  # a shift of all logits is the same output
    loss.backward()
    assert float(loss.detach()) == pytest.approx(0.0, abs=1e-6) and float(logits.grad.abs().max()) < 1e-6


@pytest.fixture(params=["no", "bf16"])
def precision(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """What accelerate computes in; it would remember that from one test to the next."""
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", request.param)
    AcceleratorState._reset_state(reset_partial_state=True)
    yield request.param
    AcceleratorState._reset_state(reset_partial_state=True)


def test_a_network_follows_the_dense_one_and_leaves_it_alone(tmp_path: Path, precision: str) -> None:
    """The labels say nothing here: only the dense network knows which class an image has."""
    images = read_images(parquet(tmp_path / "a.parquet", 60))
    torch.manual_seed(0)
    model, dense = CifarResNet(8, 5, 4), CifarResNet(8, 5, 4).eval()
    with torch.no_grad():
        dense.linear.weight *= 10
    before = {name: tensor.clone() for name, tensor in dense.state_dict().items()}
    example = _random(2, 3, 32, 32)
    expected = dense(example)
    fields: dict[str, Any] = {"batch_size": 8, "finetune": 8, "learning_rate": 0.05, "distill": 1.0}
    history = train.finetune(model, images, STEPS, Recipe("a", **fields), {}, CPU, None, dense)
    assert history[-1]["loss"] < 0.5 * history[0]["loss"]
    assert all(torch.equal(tensor, before[name]) for name, tensor in dense.state_dict().items())
    assert torch.equal(dense(example), expected)


def test_without_a_dense_network_there_is_an_error(tmp_path: Path) -> None:
    images = read_images(parquet(tmp_path / "a.parquet", 60))
    with pytest.raises(CrepeError, match="no dense network to learn from"):
        train.finetune(CifarResNet(8, 5, 4), images, STEPS, Recipe("a", finetune=1, distill=0.5), {}, CPU, None)


def test_a_teacher_is_a_copy_that_nothing_trains() -> None:
    model = nn.Linear(2, 2).train()
    teacher: Any = teacher_of(model)
    assert not teacher.training and not teacher.weight.requires_grad and model.weight.requires_grad
    with torch.no_grad():
        model.weight.zero_()
    assert teacher.weight.any()


def test_the_dense_network_is_the_one_before_the_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`crepe prune --distill` trains on the outputs that the model had when it was read."""
    torch.manual_seed(0)
    model = CifarResNet(8, 5, 4).eval()
    example, seen = _random(2, 3, 32, 32), []
    expected = model(example)

    def finetune(cut: nn.Module, *given: Any) -> list[dict[str, float]]:
        seen.append((cut(example), given[-1](example)))
        return []

    monkeypatch.setattr(train, "finetune", finetune)
    calibration = parquet(tmp_path / "a.parquet", 60)
    fields: dict[str, Any] = {"finetune": 1, "distill": 0.5, "calibration": calibration}
    crepe.prune(model, example=example, preprocess=STEPS, sparsity=0.5, **fields)
    assert torch.equal(seen[0][1], expected) and not torch.allclose(seen[0][0], expected)


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"distill": 1.5, "finetune": 1}, "distill = 1.5"), ({"distill": 0.5}, "it is a way to train; give --finetune")],
)
def test_what_does_not_go_together_is_one_line(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(crepe.UsageError, match=message):
        crepe.prune(CifarResNet(8, 5, 4), example=_random(1, 3, 32, 32), sparsity=0.5, **fields)
