"""Named masks: check, count, combine, save bit-packed, read back."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from crepe.errors import CrepeError
from crepe.masks.pattern import Pattern, parse_pattern

_FORMAT = "crepe-masks-1"
# Behind a mask's name: the tensor that holds the order of its columns.
_ORDER = "@order"


@dataclass(frozen=True, eq=False)
class Mask:
    """kept: bool (out, in), True = kept; `pattern` is what it was selected for.

    order: (in,) int64 where the pattern holds for the columns in this order (`kept[:, order]`) instead of as they are.
    """

    kept: Tensor
    pattern: Pattern
    order: Tensor | None = None

    @property
    def violations(self) -> int:
        """Groups that break the pattern."""
        return self.pattern.violations(self.kept if self.order is None else self.kept[:, self.order])

    @property
    def zeros(self) -> int:
        return self.total - int(torch.count_nonzero(self.kept))

    @property
    def total(self) -> int:
        return self.kept.numel()


class MaskSet(Mapping[str, Mask]):
    """An immutable mapping from tensor names to masks."""

    def __init__(self, masks: Mapping[str, Mask]) -> None:
        self._masks = dict(masks)

    def __getitem__(self, name: str) -> Mask:
        return self._masks[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._masks)

    def __len__(self) -> int:
        return len(self._masks)

    @property
    def sparsity(self) -> float:
        """Pruned weights over all weights that have a mask; 0.0 for an empty set."""
        total = sum(mask.total for mask in self.values())
        return sum(mask.zeros for mask in self.values()) / total if total else 0.0

    def check(self) -> None:
        """Raises CrepeError naming the first tensor whose mask breaks its pattern."""
        for name, mask in self.items():
            broken = mask.violations
            if broken:
                raise CrepeError(f"mask of {name!r} breaks pattern {mask.pattern} in {broken} groups")

    def intersect(self, other: MaskSet) -> MaskSet:
        """Kept only where both keep; the pattern of `self` stays, since removing more never breaks it."""
        return self._combine(other, torch.logical_and)

    def union(self, other: MaskSet) -> MaskSet:
        """Kept where either keeps; the result may break the pattern, so `check` it."""
        return self._combine(other, torch.logical_or)

    def _combine(self, other: MaskSet, operation: object) -> MaskSet:
        combined = dict(other)
        for name, mask in self.items():
            kept = mask.kept
            if name in other:
                if other[name].kept.shape != kept.shape:
                    raise CrepeError(
                        f"masks of {name!r} differ in shape: {tuple(kept.shape)} and {tuple(other[name].kept.shape)}"
                    )
                kept = operation(kept, other[name].kept)  # type: ignore[operator]
            combined[name] = Mask(kept, mask.pattern, mask.order)
        return MaskSet(combined)

    def save(self, path: str | Path) -> None:
        """Write eight weights per byte to safetensors; shapes and patterns go into the metadata."""
        described = {name: (tuple(mask.kept.shape), str(mask.pattern)) for name, mask in self.items()}
        save_packed(path, self.packed(), described)

    def packed(self) -> dict[str, Tensor]:
        """The masks with eight weights per byte, by name; orders of columns, where there are any, beside them."""
        orders = {name + _ORDER: mask.order.int() for name, mask in self.items() if mask.order is not None}
        return {name: pack_bits(mask.kept) for name, mask in self.items()} | orders

    @classmethod
    def load(cls, path: str | Path) -> MaskSet:
        """Read what `save` wrote. Raises CrepeError where the file is something else."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                if _FORMAT not in metadata:
                    raise CrepeError(f"{path} is no mask file: its metadata lack {_FORMAT!r}")
                described = json.loads(metadata[_FORMAT])
                present = set(file.keys())
                orders = {n: file.get_tensor(n + _ORDER).long() for n in described if n + _ORDER in present}
                masks = {n: _read_mask(file.get_tensor(n), about, orders.get(n)) for n, about in described.items()}
                return cls(masks)
        except (SafetensorError, OSError) as error:
            raise CrepeError(f"cannot read masks from {path}: {error}") from error


def save_packed(
    path: str | Path, packed: Mapping[str, Tensor], described: Mapping[str, tuple[tuple[int, ...], str]]
) -> None:
    """Write masks that are packed already; described: name -> shape and pattern."""
    from safetensors.torch import save_file

    about = {name: {"shape": list(shape), "pattern": pattern} for name, (shape, pattern) in described.items()}
    # One entry only: safetensors writes several in an order that changes from run to run.
    save_file(dict(packed), path, metadata={_FORMAT: json.dumps(about)})


def _read_mask(packed: Tensor, about: dict[str, object], order: Tensor | None) -> Mask:
    shape: tuple[int, ...] = tuple(about["shape"])  # type: ignore[arg-type]
    return Mask(unpack_bits(packed, shape), parse_pattern(str(about["pattern"])), order)


def pack_bits(mask: Tensor) -> Tensor:
    """bool (any shape) -> uint8 (ceil(numel / 8),); bit i of byte b is element 8 b + i of the flat mask."""
    flat = mask.reshape(-1)
    padded = torch.nn.functional.pad(flat, (0, -flat.numel() % 8)).reshape(-1, 8)
    return (padded.to(torch.uint8) << _bit_positions(mask.device)).sum(-1, dtype=torch.uint8)


def unpack_bits(packed: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The inverse of `pack_bits`; raises CrepeError where `packed` does not hold `shape`."""
    numel = torch.Size(shape).numel()
    if packed.numel() != -(-numel // 8):
        raise CrepeError(
            f"{packed.numel()} packed bytes cannot hold a mask of shape {shape}: expected {-(-numel // 8)}"
        )
    bits = (packed[:, None] >> _bit_positions(packed.device)) & 1
    return bits.bool().reshape(-1)[:numel].reshape(shape)


def _bit_positions(device: torch.device) -> Tensor:
    return torch.arange(8, dtype=torch.uint8, device=device)
