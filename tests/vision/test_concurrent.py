"""Pruning while training: when it selects, what dead filters do, what comes back, and what is left in the end."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from crepe.errors import UsageError
from crepe.vision.concurrent import ConcurrentPruning, PrunedLayer, Schedule


def _model() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 6, 3),
        nn.BatchNorm2d(6),
        nn.Flatten(),
        nn.Linear(6, 2),
    )
    for name in (1, 4):
        nn.init.uniform_(model[name].weight, 0.1, 1.0)
        nn.init.uniform_(model[name].bias, 0.1, 1.0)
    return model


LAYERS = (PrunedLayer("0", "1"), PrunedLayer("3", "4"))


def _largest(weight: Tensor, keep: int) -> Tensor:
    return weight.flatten(1).norm(dim=1).argsort(descending=True)[:keep]


def _pruning(model: nn.Module, until: int = 4, regrowth: float = 0.0, every: int = 1) -> ConcurrentPruning:
    return ConcurrentPruning(LAYERS, Schedule(0.5, until, every, regrowth), _largest)


def _train(model: nn.Module, steps: int = 2) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    for step in range(steps):
        images = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(step))
        model(images).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()


def test_it_selects_every_few_epochs_until_the_last_epoch_of_pruning() -> None:
    model = _model()
    pruning = _pruning(model, until=5, every=2)
    assert [pruning.on_epoch_end(model, epoch) for epoch in range(1, 8)] == [
        False,
        True,
        False,
        True,
        True,
        False,
        False,
    ]


def test_dead_filters_give_nothing_and_get_no_gradient() -> None:
    model = _model()
    pruning = _pruning(model)
    pruning.on_epoch_end(model, 1)
    dead = ~pruning.alive["0"]
    assert 0 < int(dead.sum()) < 8
    hidden = model[:2](torch.randn(4, 3, 5, 5))
    assert not hidden[:, dead].any() and hidden[:, ~dead].any()
    model(torch.randn(4, 3, 5, 5)).square().sum().backward()
    for parameter in (model[0].weight, model[1].weight, model[1].bias):
        assert not parameter.grad[dead].any() and parameter.grad[~dead].any()


def test_what_comes_back_starts_from_its_last_living_values() -> None:
    model = _model()
    pruning = ConcurrentPruning(LAYERS, Schedule(0.5, 10, 1, 0.0), lambda weight, keep: chosen[:keep])
    chosen = torch.arange(8)
    chosen = chosen[chosen < 6]
    pruning.on_epoch_end(model, 1)
    dead = ~pruning.alive["0"]
    before = model[0].weight[dead].detach().clone(), model[1].running_mean[dead].clone()
    _train(model)
    assert not torch.equal(model[0].weight[dead], before[0])
    chosen = torch.arange(8).flip(0)
    chosen = torch.tensor([5, 4, 3, 2, 1, 0])
    pruning.on_epoch_end(model, 2)
    assert bool((pruning.alive["0"] & dead).any())
    assert torch.equal(model[0].weight[dead], before[0]) and torch.equal(model[1].running_mean[dead], before[1])


def test_regrowth_keeps_more_alive_at_first_and_nothing_in_the_end() -> None:
    model = _model()
    grown, plain = _pruning(model, until=4, regrowth=0.4), _pruning(model, until=4)
    counts = []
    for epoch in (1, 4):
        for pruning in (grown, plain):
            pruning.on_epoch_end(model, epoch)
        counts.append([sum(int(alive.sum()) for alive in pruning.alive.values()) for pruning in (grown, plain)])
    assert counts[0][0] > counts[0][1] and counts[1][0] == counts[1][1]


def test_a_layer_whose_scales_are_all_small_is_left_alone() -> None:
    model = _model()
    model[4].weight.data.fill_(0.01)
    pruning = _pruning(model)
    pruning.on_epoch_end(model, 1)
    assert set(pruning.alive) == {"0"}


def test_the_finished_model_computes_the_same_without_gates() -> None:
    model = _model()
    pruning = _pruning(model)
    pruning.on_epoch_end(model, 4)
    _train(model)
    model.eval()
    images = torch.randn(4, 3, 5, 5)
    gated = model(images)
    alive = pruning.finish(model)
    torch.testing.assert_close(model(images), gated)
    assert not model[1]._forward_hooks
    for convolution, norm in (("0", "1"), ("3", "4")):
        dead = ~alive[convolution]
        assert not model.get_submodule(convolution).weight[dead].any()
        assert not model.get_submodule(norm).bias[dead].any()


@pytest.mark.parametrize("wrong", [{"sparsity": 1.0, "until": 4}, {"sparsity": 0.5, "until": 0}])
def test_a_wrong_schedule_is_named(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=r"1.0|until=0"):
        Schedule(**wrong)  # type: ignore[arg-type]
