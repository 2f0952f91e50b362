"""How sparse a tensor may become: the user's bounds, and the limits of a rule where the user gave none."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from fnmatch import fnmatchcase

from crepe.allocation.base import Bounds, Budget
from crepe.errors import CrepeError, UsageError

# No rule takes more than this share of what the target keeps away from a tensor: none is emptied unasked.
_DEEPEST = 0.75


def parse_bounds(texts: Sequence[str], names: Collection[str]) -> dict[str, Bounds]:
    """`GLOB=LOW:HIGH`, such as `*.v_proj.*=0.3:0.6` -> bounds of the tensors that are named; the last match wins.

    Raises:
        UsageError: a text of another form, numbers outside 0..1 or in the wrong order, a glob that matches nothing.
    """
    bounds: dict[str, Bounds] = {}
    for text in texts:
        glob, low, high = _parse(text)
        found = [name for name in names if fnmatchcase(name, glob)]
        if not found:
            example = next(iter(names), None)
            raise UsageError(f"bounds {text!r}: {glob!r} matches no pruned tensor: names look like {example!r}")
        bounds.update(dict.fromkeys(found, (low, high)))
    return bounds


def _parse(text: str) -> tuple[str, float, float]:
    glob, _, span = text.rpartition("=")
    low_text, _, high_text = span.partition(":")
    try:
        low, high = float(low_text), float(high_text)
    except ValueError:
        low = high = float("nan")
    if not glob.strip() or not 0 <= low <= high <= 1:
        raise UsageError(f"bounds {text!r}: use GLOB=LOW:HIGH with 0 <= LOW <= HIGH <= 1, such as '*.v_proj.*=0.3:0.6'")
    return glob.strip(), low, high


def limits(budget: Budget, spread: float = 1.0) -> dict[str, Bounds]:
    """The lowest and the highest sparsity of each tensor.

    The user's bounds where there are some; else the target -+ `spread`, and at least a quarter of what the target
    keeps is kept. These limits of a rule give way, to 0..1, where the budget cannot be met within them.
    """
    target, sizes = budget.sparsity, budget.sizes
    own = max(0.0, target - spread), min(target + spread, target + _DEEPEST * (1 - target))
    found = {name: budget.bounds.get(name, own) for name in sizes}
    low, high = (sum(sizes[name] * pair[end] for name, pair in found.items()) for end in (0, 1))
    if low - 0.5 <= budget.zeros <= high + 0.5:
        return found
    return {name: budget.bounds.get(name, (0.0, 1.0)) for name in sizes}


def require_reachable(budget: Budget, low: Mapping[str, int], high: Mapping[str, int]) -> None:
    """Raises CrepeError where the budget lies outside what the fewest and the most zeros of each tensor add up to."""
    total = sum(budget.sizes.values())
    fewest, most = sum(low.values()), sum(high.values())
    if not fewest <= budget.zeros <= most:
        raise CrepeError(
            f"sparsity {budget.sparsity:g} is out of reach: the bounds and pattern {budget.pattern} allow "
            f"{fewest / total:.4g} to {most / total:.4g}; change the sparsity, the bounds or the pattern"
        )
