"""What a rule is, and exact widths from shares."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from crepe.errors import CrepeError
from crepe.masks.select import kept_count
from crepe.registry import Registry
from crepe.vision.methods.base import Layer

# (layers, share of the channels to remove) -> share of each layer by name. The share may reach 1.
Rule = Callable[[Sequence[Layer], float], dict[str, float]]

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
