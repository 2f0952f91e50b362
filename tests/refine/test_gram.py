"""The damping rule: documented, loud about NaN, never the identity."""

from __future__ import annotations

import pytest
import torch

from crepe.errors import CrepeError
from crepe.refine.gram import damped, factor, inverse_factor


def _gram(tokens: int, channels: int) -> torch.Tensor:
    inputs = torch.randn(tokens, channels, generator=torch.Generator().manual_seed(0))
    return inputs.T @ inputs


def test_damping_adds_a_share_of_the_mean_diagonal() -> None:
    gram = _gram(50, 8)
    torch.testing.assert_close(damped(gram, 0.1) - gram, torch.eye(8) * 0.1 * gram.diagonal().mean())


def test_a_dead_channel_gets_one_on_its_diagonal() -> None:
    gram = _gram(50, 8)
    gram[3] = gram[:, 3] = 0.0
    assert damped(gram)[3].tolist() == [0, 0, 0, 1, 0, 0, 0, 0]


def test_fewer_tokens_than_channels_can_still_be_inverted() -> None:
    gram = _gram(4, 64)
    upper = inverse_factor(gram).double()
    torch.testing.assert_close(upper.T @ upper @ damped(gram).double(), torch.eye(64).double(), rtol=1e-2, atol=1e-2)


def test_an_indefinite_matrix_is_damped_further_and_not_replaced() -> None:
    gram = torch.tensor([[1.0, 1.2], [1.2, 1.0]])
    lower = factor(gram, 0.01)
    found = lower @ lower.T
    assert found[0, 1] == pytest.approx(1.2) and found[0, 0] == pytest.approx(2.0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_is_one_clear_line(bad: float) -> None:
    gram = _gram(50, 8)
    gram[2, 2] = bad
    with pytest.raises(CrepeError, match="Gram matrix holds NaN or infinite values"):
        factor(gram)
