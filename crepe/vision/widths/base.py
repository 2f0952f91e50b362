"""What a rule is, and exact widths from shares."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from crepe.allocation.curves import Curve
from crepe.errors import CrepeError
from crepe.masks.select import kept_count
from crepe.registry import Registry
from crepe.vision.methods.base import Layer


@dataclass(frozen=True)
class Rule:
    """divide: (layers, share to remove) -> share of each layer by name, which may reach 1.

    needs_curves: `divide` also takes, by name, what the model's outputs lose with shares of that layer alone, rising.
    """

    divide: Callable[..., dict[str, float]]
    needs_curves: bool = False

    def __call__(
        self, layers: Sequence[Layer], share: float, curves: Mapping[str, Curve] | None = None
    ) -> dict[str, float]:
        return self.divide(layers, share, curves) if self.needs_curves else self.divide(layers, share)


RULES: Registry[Rule] = Registry("allocation of image models", "crepe.vision.widths")


def widths(layers: Sequence[Layer], shares: Mapping[str, float], round_to: int, at_least_one: bool) -> dict[str, int]:
    """Units that each layer keeps, a multiple of `round_to` where the layer is wide enough.

    Raises:
        CrepeError: a layer would lose everything, unless `at_least_one`.
    """
    found: dict[str, int] = {}
    for layer in layers:
        keep = kept_count(layer.width, shares[layer.name])
        if keep < 1 and not at_least_one:
            raise CrepeError(
                f"removing {shares[layer.name]:.2%} of the {layer.width} channels of {layer.name!r} leaves none: "
                f"lower --sparsity, or --exclude '{layer.name}*'"
            )
        found[layer.name] = aligned(keep, layer.width, round_to)
    return found


def aligned(keep: int, width: int, round_to: int) -> int:
    """`keep` as the nearest multiple of `round_to` (the larger of two), at least one multiple, at most `width`."""
    nearest = max((2 * keep + round_to) // (2 * round_to), 1) * round_to
    return min(nearest, width)
