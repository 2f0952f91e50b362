"""Packing one parameter: the layout that its mask allows, or the reason why it stays dense."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from crepe.checkpoint.layouts import Bitmap, Blocks, Layout, Tensors, TwoOfFour, as_matrix, from_matrix
from crepe.checkpoint.operations import bitmap_pack
from crepe.errors import CrepeError
from crepe.kernels.reference import colblock, sp24
from crepe.masks import ColBlock, Mask, NofM, Unstructured

_WEIGHTS_AT_ONCE = 1 << 26


@dataclass(frozen=True)
class Packed:
    """A parameter ready to be written.

    layout: None where it stays dense. tensors: on the CPU. reason: why it has not the layout of its pattern, None where
    it has.
    """

    layout: Layout | None
    tensors: Tensors
    reason: str | None = None

    @property
    def bytes(self) -> int:
        return sum(size_of(tensor) for tensor in self.tensors.values())


def size_of(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def pack(weight: Tensor, masks: Sequence[Mask], transposed: bool = False) -> Packed:
    """Pack a parameter whose matrices have these masks: one, or one for each expert.

    weight: as the model has it, zero where the masks are; packed on the device where it lies. transposed: whether its
    matrices are (in, out).

    Raises:
        CrepeError: a mask breaks its pattern.
    """
    mask, reason = _joined(masks)
    if not mask.zeros:
        return Packed(None, {"": weight.cpu()}, "nothing was removed from it")
    reason = reason or _obstacle(mask, weight.shape[-1 if transposed else -2])
    if reason is None and (mask.pattern == NofM(2, 4) or isinstance(mask.pattern, ColBlock)):
        found = _as_pattern(weight, mask, transposed)
    else:
        found = _as_bitmap(weight, mask, transposed, reason)
    if found.bytes >= size_of(weight):
        name = found.layout.name if found.layout else ""
        reason = f"as {name} it would take {found.bytes} bytes instead of {size_of(weight)}"
        return Packed(None, {"": weight.cpu()}, reason)
    return found


def _joined(masks: Sequence[Mask]) -> tuple[Mask, str | None]:
    """One mask over all matrices of a parameter, and why it has no pattern as a whole."""
    for mask in masks:
        broken = mask.violations
        if broken:
            raise CrepeError(f"the mask breaks pattern {mask.pattern} in {broken} groups: select it with that pattern")
    if len(masks) == 1:
        return masks[0], None
    whole, pattern = torch.cat([mask.kept for mask in masks]), masks[0].pattern
    if any(mask.order is not None for mask in masks):
        return Mask(whole, Unstructured()), "its experts have their columns in orders of their own"
    if any(mask.pattern != pattern for mask in masks):
        return Mask(whole, Unstructured()), "its experts have different patterns"
    return Mask(whole, pattern), None


def _obstacle(mask: Mask, outputs: int) -> str | None:
    """Why a mask cannot be stored in the layout of its pattern. outputs: of one matrix."""
    pattern = mask.pattern
    if pattern == NofM(2, 4):
        return sp24.obstacle(tuple(mask.kept.shape))
    if not isinstance(pattern, ColBlock):
        return None
    # Tiles must not reach from one expert into the next, and all experts keep the same number of blocks.
    if len(mask.kept) > outputs and outputs % pattern.rows:
        return f"the {outputs} rows of an expert are no multiple of {pattern.rows}"
    return "its experts keep different numbers of blocks" if pattern.violations(mask.kept) else None


def _as_pattern(weight: Tensor, mask: Mask, transposed: bool) -> Packed:
    matrix, kept, shape = as_matrix(weight, transposed), mask.kept.to(weight.device), tuple(weight.shape)
    if isinstance(mask.pattern, ColBlock):
        values, blocks = colblock.pack(matrix, kept, mask.pattern)
        layout = Blocks(shape, transposed, str(mask.pattern), blocks.shape[1])
        return Packed(layout, {"": values.cpu(), "_blocks": blocks.cpu()})
    if mask.order is None:
        values, meta = _packed_rows(matrix, kept)
        return Packed(TwoOfFour(shape, transposed), {"": values, "_meta": meta})
    order = mask.order.to(weight.device)
    values, meta = _packed_rows(matrix[:, order], kept[:, order])
    layout24 = TwoOfFour(shape, transposed, True)
    return Packed(layout24, {"": values, "_meta": meta, "_order": mask.order.cpu().int()})


def _packed_rows(matrix: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
    """`sp24.pack`, moved to the CPU, some rows after the other: it takes eleven bytes of room for every weight."""
    rows = max(1, _WEIGHTS_AT_ONCE // matrix.shape[1])
    pairs = zip(torch.split(matrix, rows), torch.split(kept, rows), strict=True)
    parts = [sp24.pack(*pair) for pair in pairs]
    values, meta = zip(*parts, strict=True)
    return torch.cat([part.cpu() for part in values]), torch.cat([part.cpu() for part in meta])


def _as_bitmap(weight: Tensor, mask: Mask, transposed: bool, reason: str | None) -> Packed:
    # The bits follow the parameter as it lies in the model, so nothing is turned around when it is unpacked.
    kept = from_matrix(mask.kept.to(weight.device), tuple(weight.shape), transposed)
    values, bits = bitmap_pack(weight, kept)
    tensors = {"": values.cpu(), "_bits": bits.cpu()}
    return Packed(Bitmap(tuple(weight.shape), kept=len(values)), tensors, reason)
