"""The layout of 2:4 weights: the kept pair of every group of four, and where in the group it belongs.

values: (out, in / 2), the kept pairs in the order of their groups. meta: (out, in / 32) int32; word q of a row holds
the codes of groups q + j * in / 32 for j = 0..7, so that a kernel which walks along q meets contiguous values,
contiguous activations, and a code at a bit position known when it is compiled. In a word the lower position of group j
lies at bit 2 j and the higher one at bit 8 + 2 j for j < 4; groups 4..7 take the upper half in the same way.
"""

from __future__ import annotations

import torch
from torch import Tensor

from crepe.errors import CrepeError
from crepe.masks import NofM

# Groups whose codes share a word, and the inputs they cover.
GROUPS = 8
INPUTS = 4 * GROUPS
# Words of a file whose codes are checked in one go.
_WORDS_AT_ONCE = 1 << 18


def obstacle(shape: tuple[int, ...]) -> str | None:
    """Why a weight of `shape` (out, in) cannot be laid out, None where it can."""
    if len(shape) != 2:
        return f"it has {len(shape)} dimensions instead of 2"
    return f"its {shape[1]} inputs are no multiple of {INPUTS}" if shape[1] % INPUTS else None


def pack(weight: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
    """weight, kept: (out, in) -> values (out, in / 2) of the weight's dtype, meta (out, in / 32) int32.

    A group that keeps fewer than two takes its lowest free positions as well, with the value +0.0.

    Raises:
        CrepeError: the shape does not fit, or the mask keeps more than two of a group.
    """
    reason = obstacle(tuple(weight.shape))
    if reason:
        raise CrepeError(f"a weight of shape {tuple(weight.shape)} cannot be packed as 2:4: {reason}")
    broken = NofM(2, 4).violations(kept)
    if broken:
        raise CrepeError(f"the mask breaks pattern 2:4 in {broken} groups: select it with pattern 2:4")
    positions = _positions_of(kept)
    clean = torch.where(kept, weight, torch.zeros((), dtype=weight.dtype, device=weight.device)) + 0.0
    values = clean.reshape(len(weight), -1, 4).gather(-1, positions)
    return values.reshape(len(weight), -1), _to_words(positions)


def unpack(values: Tensor, meta: Tensor) -> Tensor:
    """The inverse of `pack`: (out, in), zero (+0.0) where nothing was kept."""
    positions = _to_positions(meta)
    dense = torch.zeros(*positions.shape[:-1], 4, dtype=values.dtype, device=values.device)
    return dense.scatter_(-1, positions, values.reshape(positions.shape)).reshape(len(values), -1)


def check(values: Tensor, meta: Tensor, shape: tuple[int, int]) -> None:
    """Raises CrepeError where the two tensors are not a 2:4 weight of `shape` (out, in)."""
    reason = obstacle(shape)
    if reason:
        raise CrepeError(f"a weight of shape {shape} cannot be packed as 2:4: {reason}")
    out, inputs = shape
    expected = {"values": (out, inputs // 2), "meta": (out, inputs // INPUTS)}
    for name, tensor in {"values": values, "meta": meta}.items():
        if tuple(tensor.shape) != expected[name]:
            raise CrepeError(f"{name} has shape {tuple(tensor.shape)}: expected {expected[name]} for {out} x {inputs}")
    if meta.dtype != torch.int32:
        raise CrepeError(f"meta is {meta.dtype}: expected torch.int32")
    wrong = sum(_wrong(part) for part in torch.split(meta, max(1, _WORDS_AT_ONCE // max(1, meta.shape[1]))))
    if wrong:
        raise CrepeError(f"{wrong} codes are no pair of positions that pattern 2:4 allows: the file is damaged")


def _wrong(meta: Tensor) -> int:
    """How many codes are no rising pair of positions; takes 260 bytes of room for every word."""
    positions = _to_positions(meta)
    return int(torch.count_nonzero(positions[..., 0] >= positions[..., 1]))


def linear(inputs: Tensor, values: Tensor, meta: Tensor, bias: Tensor | None) -> Tensor:
    """inputs (..., in) @ weight^T + bias with the weight unpacked: what the kernels compute without unpacking it."""
    return torch.nn.functional.linear(inputs, unpack(values, meta), bias)


def _pair_of(code: int) -> tuple[int, int]:
    """The two positions of a group whose bit i says that position i is kept: those, and then the lowest free ones."""
    kept = [place for place in range(4) if code >> place & 1]
    free = [place for place in range(4) if not code >> place & 1]
    first, second = sorted((kept + free)[:2])
    return first, second


def _positions_of(kept: Tensor) -> Tensor:
    """kept: (out, in) with at most two of every group -> (out, in / 4, 2) int64."""
    # A group as one number; its four bytes are 0 or 1.
    whole = kept.contiguous()
    group = (whole.clone() if whole.storage_offset() % 4 else whole).view(torch.int32)
    code = (group | (group >> 7) | (group >> 14) | (group >> 21)) & 15
    return torch.tensor([_pair_of(one) for one in range(16)], device=kept.device)[code]


def _shifts(device: torch.device) -> Tensor:
    """Bit positions of the two codes of each group of a word, (8, 2)."""
    group = torch.arange(GROUPS, device=device)
    low = 2 * (group % 4) + 16 * (group // 4)
    return torch.stack([low, low + 8], -1)


def _to_words(positions: Tensor) -> Tensor:
    """positions: (out, in / 4, 2) -> (out, in / 32) int32."""
    strided = positions.reshape(len(positions), GROUPS, -1, 2).transpose(1, 2)
    words = (strided << _shifts(positions.device)).sum((-2, -1))
    return words.to(torch.int32)  # the highest bits wrap into the sign


def _to_positions(meta: Tensor) -> Tensor:
    """The inverse of `_to_words`: (out, in / 4, 2) int64."""
    strided = (meta.long()[..., None, None] >> _shifts(meta.device)) & 3
    return strided.transpose(1, 2).reshape(len(meta), -1, 2)
