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
