"""Distillation: a network learns the dense network's outputs beside the labels."""

from __future__ import annotations

from copy import deepcopy

from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

# How much the dense network's outputs are softened, so that the order of the wrong classes counts too.
TEMPERATURE = 4.0


def distilled(cross_entropy: Tensor, logits: Tensor, dense: Tensor, share: float) -> Tensor:
    """(1 - share) L + share T^2 KL(softmax(d / T) || softmax(z / T)), the mean over images; a scalar.

    T^2 makes up for the gradients that a temperature T shrinks, so `share` means the same at any T.
    Source: Hinton, Vinyals and Dean 2015, "Distilling the knowledge in a neural network", section 2.

    cross_entropy: L, a scalar. logits, dense: z and d, (images, classes), of the network and of the dense one.
    """
    soft = F.log_softmax(dense.detach().float() / TEMPERATURE, 1)
    found = F.log_softmax(logits.float() / TEMPERATURE, 1)
    divergence = F.kl_div(found, soft, reduction="batchmean", log_target=True)
    return (1 - share) * cross_entropy + share * TEMPERATURE**2 * divergence


def teacher_of(model: nn.Module) -> nn.Module:
    """A copy of the dense network that nothing trains."""
    return deepcopy(model).requires_grad_(False).eval()
