"""Moments are mean and covariance, of one set of inputs or of several."""

from __future__ import annotations

import torch

from crepe.vision.compensation import moments_of


def test_moments_are_mean_and_covariance() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(2, 300, 8, generator=generator) @ torch.randn(8, 8, generator=generator) + 2
    both = moments_of(inputs.sum(1), inputs.mT @ inputs, 300)
    for part, values in enumerate(inputs):
        found = moments_of(values.sum(0), values.T @ values, 300)
        torch.testing.assert_close(found.mean, values.mean(0))
        torch.testing.assert_close(found.covariance, torch.cov(values.T, correction=0), rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(both.mean[part], found.mean)
        torch.testing.assert_close(both.covariance[part], found.covariance, rtol=1e-3, atol=1e-3)


def test_a_constant_input_varies_by_nothing() -> None:
    """Rounding would leave a variance of any sign, and where all inputs are constant no damping makes up for that."""
    from crepe.refine.gram import factor

    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(300, 8, generator=generator)
    inputs[:, 2:5] = torch.tensor([1.7, -0.3, 1e-3])
    covariance = moments_of(inputs.sum(0), inputs.T @ inputs, 300).covariance
    assert not covariance[2:5].any() and not covariance[:, 2:5].any()
    assert (covariance.diagonal()[[0, 1, 5, 6, 7]] > 0.5).all()
    constant = torch.full((300, 8), 1.7) * torch.arange(8)
    covariance = moments_of(constant.sum(0), constant.T @ constant, 300).covariance
    assert not covariance.any() and torch.equal(factor(covariance), torch.eye(8))
