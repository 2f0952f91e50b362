"""The refit as a function: it lowers the held-out error, holds zeros, stops where it should, repeats itself."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from crepe.refine import BlockFit, Fit
from crepe.refine.refit import loss, rate, refit, split

_SIZE = 24


def _block(count: int = 8, steps: int = 40, noise: float = 0.0) -> BlockFit:
    """A two-layer unit that lost half of its first matrix, and the outputs of the whole one."""
    source = torch.Generator().manual_seed(0)
    first, second = (torch.randn(_SIZE, _SIZE, generator=source) / 5 for _ in range(2))
    inputs = [torch.randn(2, 16, _SIZE, generator=source) for _ in range(count)]
    kept = torch.rand(_SIZE, _SIZE, generator=source) < 0.5

    def run(parameters: Mapping[str, Tensor], batch: int) -> Tensor:
        return torch.tanh(inputs[batch] @ parameters["first"].T) @ parameters["second"].T

    dense = {"first": first, "second": second}
    targets = [run(dense, i) + noise * torch.randn(2, 16, _SIZE, generator=source) for i in range(count)]
    return BlockFit({**dense, "first": first * kept}, {"first": kept}, run, targets, steps, seed=0)


def _held_out(block: BlockFit, fit: Fit) -> float:
    held = split(len(block.targets))[1]
    return sum(float(loss(block.run(fit.parameters, i), block.targets[i])) for i in held) / len(held)


def test_the_held_out_error_falls_and_zeros_stay() -> None:
    block = _block()
    fit = refit(block)
    assert fit.after < 0.9 * fit.before
    assert _held_out(block, fit) == pytest.approx(fit.after)
    zeros = ~block.kept["first"]
    assert not bool(fit.parameters["first"][zeros].any())
    assert bool((fit.parameters["first"][~zeros] != block.parameters["first"][~zeros]).any())


def test_never_worse_where_nothing_can_be_gained() -> None:
    """Targets that are noise: whatever is learned from some batches is wrong for the others."""
    block = _block(count=2, steps=200, noise=100.0)
    fit = refit(block)
    assert fit.after <= fit.before
    assert _held_out(block, fit) <= fit.before + 1e-6


def test_same_seed_same_values_and_nothing_given_is_changed() -> None:
    block = _block()
    before = {name: value.clone() for name, value in block.parameters.items()}
    first, second = refit(block), refit(block)
    assert all(torch.equal(first.parameters[name], second.parameters[name]) for name in before)
    assert all(torch.equal(block.parameters[name], value) for name, value in before.items())


@pytest.mark.parametrize("count", [1, 2, 3, 7, 8, 9, 16, 17, 64])
def test_split_holds_batches_out(count: int) -> None:
    training, held = split(count)
    assert training and held
    if count > 1:
        assert sorted(training + held) == list(range(count))
    assert len(held) <= max(count // 8, 1)


def test_every_token_counts_the_same() -> None:
    target = torch.ones(1, 2, 4)
    target[0, 0] *= 100
    assert float(loss(target * 1.1, target)) == pytest.approx(0.01, rel=1e-2)


def test_the_rate_rises_and_falls_to_nothing() -> None:
    rates = [rate(step, 100) for step in range(101)]
    assert rates[0] == 0.2 and max(rates) == 1.0 and rates[100] == pytest.approx(0.0)
    assert rates[5:] == sorted(rates[5:], reverse=True)
