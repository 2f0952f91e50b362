"""How a pruned parameter lies in a packed file: three layouts, the tensors each is made of, and which one is taken.

The values take the parameter's own name, and what says where they belong is a tensor with a suffix behind it. So
whoever takes the values for the parameter meets a wrong shape instead of wrong weights. docs/packed-format.md has the
bytes.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from crepe.checkpoint.operations import (
    bitmap_unpack,
    colblock_linear,
    colblock_uncovered,
    sp24_linear,
    sp24_uncovered,
    sp24_unpack,
)
from crepe.checkpoint.section import are_sizes
from crepe.errors import CrepeError
from crepe.kernels.reference import bitmap, colblock, sp24
from crepe.masks import ColBlock, parse_pattern

# Behind the names of the tensors that say where values belong.
SUFFIXES = ("_meta", "_order", "_blocks", "_bits")
# Shape and dtype of one tensor of a layout; no dtype: the parameter's own.
Part = tuple[tuple[int, ...], torch.dtype | None]
# The tensors of a parameter by the suffix of their names; the values have none.
Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class Layout(ABC):
    """One parameter in a packed file.

    shape: of the parameter in the model. transposed: whether its matrices are (in, out) there; those of a parameter
    with three dimensions lie below each other, one expert after the other.
    """

    shape: tuple[int, ...]
    transposed: bool = False
    name: ClassVar[str]
    # Whether a layer can multiply with it as it lies; else it is unpacked when it is loaded.
    multiplies: ClassVar[bool] = True

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """(out, in), the experts of a fused parameter below each other."""
        *experts, first, second = self.shape
        outputs, inputs = (second, first) if self.transposed else (first, second)
        return math.prod(experts) * outputs, inputs

    @abstractmethod
    def parts(self) -> dict[str, Part]:
        """What it consists of, by suffix."""

    @cached_property
    def suffixes(self) -> tuple[str, ...]:
        """Of the tensors that it consists of; every forward asks for them."""
        return tuple(self.parts())

    @abstractmethod
    def check(self, tensors: Tensors) -> None:
        """Raises CrepeError where the tensors are no parameter in this layout."""

    @abstractmethod
    def unpack(self, tensors: Tensors) -> Tensor:
        """The parameter as the model has it."""

    def linear(self, inputs: Tensor, tensors: Tensors, bias: Tensor | None) -> Tensor:
        """inputs (..., in) @ weight^T + bias."""
        raise NotImplementedError

    def uncovered(self, inputs: Tensor, tensors: Tensors, bias: Tensor | None) -> str | None:
        """Why no kernel would compute `linear` of these, None where one would; looks at no values."""
        raise NotImplementedError

    def to_dict(self) -> dict[str, Any]:
        """The entry in config.json."""
        return {"layout": self.name, **{key: value for key, value in asdict(self).items() if value is not False}}


@dataclass(frozen=True)
class TwoOfFour(Layout):
    """Kept pairs and their positions. ordered: the groups of four are neighbours in an order that is stored too."""

    ordered: bool = False
    name: ClassVar[str] = "2:4"

    def parts(self) -> dict[str, Part]:
        out, inputs = self.matrix_shape
        parts: dict[str, Part] = {"": ((out, inputs // 2), None), "_meta": ((out, inputs // sp24.INPUTS), torch.int32)}
        return {**parts, "_order": ((inputs,), torch.int32)} if self.ordered else parts

    def check(self, tensors: Tensors) -> None:
        sp24.check(tensors[""], tensors["_meta"], self.matrix_shape)
        if self.ordered:
            wanted = torch.arange(self.matrix_shape[1], device=tensors["_order"].device)
            if not torch.equal(tensors["_order"].sort().values.long(), wanted):
                raise CrepeError("its order names a column twice or one that is not there: the file is damaged")

    def unpack(self, tensors: Tensors) -> Tensor:
        matrix = sp24_unpack(tensors[""], tensors["_meta"])
        if self.ordered:
            matrix = matrix[:, tensors["_order"].argsort()]
        return from_matrix(matrix, self.shape, self.transposed)

    def linear(self, inputs: Tensor, tensors: Tensors, bias: Tensor | None) -> Tensor:
        if self.ordered:
            # Of any other width, some inputs would be left out in silence.
            inputs = torch.unflatten(inputs, -1, (self.matrix_shape[1],)).index_select(-1, tensors["_order"])
        return sp24_linear(inputs, tensors[""], tensors["_meta"], bias)

    def uncovered(self, inputs: Tensor, tensors: Tensors, bias: Tensor | None) -> str | None:
        return sp24_uncovered(inputs, tensors[""], tensors["_meta"], bias)


@dataclass(frozen=True)
class Blocks(Layout):
    """Kept column blocks side by side. pattern: `colblock:RxC`; kept: blocks of every tile of R rows."""

    pattern: str = ""
    kept: int = 0
    name: ClassVar[str] = "colblock"

    @cached_property
    def block(self) -> ColBlock:
        found = parse_pattern(self.pattern)
        if not isinstance(found, ColBlock):
            raise CrepeError(f"pattern {self.pattern!r} of a colblock layout is no colblock:RxC")
        return found

    def parts(self) -> dict[str, Part]:
        out, block = self.matrix_shape[0], self.block
        return {
            "": ((out, self.kept * block.columns), None),
            "_blocks": ((-(-out // block.rows), self.kept), torch.int32),
        }

    def check(self, tensors: Tensors) -> None:
        colblock.check(tensors[""], tensors["_blocks"], self.block, self.matrix_shape)

    def unpack(self, tensors: Tensors) -> Tensor:
        matrix = colblock.unpack(tensors[""], tensors["_blocks"], self.block, self.matrix_shape[1])
        return from_matrix(matrix, self.shape, self.transposed)

    def linear(self, inputs: Tensor, tensors: Tensors, bias: Tensor | None) -> Tensor:
        return colblock_linear(inputs, tensors[""], tensors["_blocks"], self.block, bias)

    def uncovered(self, inputs: Tensor, tensors: Tensors, bias: Tensor | None) -> str | None:
        return colblock_uncovered(inputs, tensors[""], tensors["_blocks"], self.block, bias)


@dataclass(frozen=True)
class Bitmap(Layout):
    """Kept weights in the parameter's own order and one bit for every weight. kept: how many there are."""

    kept: int = 0
    name: ClassVar[str] = "bitmap"
    multiplies: ClassVar[bool] = False

    def parts(self) -> dict[str, Part]:
        return {"": ((self.kept,), None), "_bits": ((-(-math.prod(self.shape) // 8),), torch.uint8)}

    def check(self, tensors: Tensors) -> None:
        bitmap.check(tensors[""], tensors["_bits"], self.shape)

    def unpack(self, tensors: Tensors) -> Tensor:
        return bitmap_unpack(tensors[""], tensors["_bits"], self.shape)


_LAYOUTS: dict[str, type[Layout]] = {kind.name: kind for kind in (TwoOfFour, Blocks, Bitmap)}


def parse_layout(about: Mapping[str, Any]) -> Layout:
    """The inverse of `to_dict`. Raises CrepeError for a layout or a key that this version does not know."""
    if not isinstance(about, Mapping):
        raise CrepeError(f"config.json describes a packed tensor as {about!r}: expected an object with its layout")
    given = dict(about)
    kind = _LAYOUTS.get(str(given.pop("layout", "")))
    if kind is None:
        raise CrepeError(f"unknown layout {about.get('layout')!r}: this version of crepe knows {', '.join(_LAYOUTS)}")
    odd = sorted(set(given) - {field.name for field in fields(kind)})
    if odd:
        raise CrepeError(f"config.json describes a tensor in layout {kind.name} wrongly: it has no {odd[0]!r}")
    try:
        if not are_sizes(given["shape"]) or len(given["shape"]) < 2 or not are_sizes([given.get("kept", 0)], least=0):
            raise CrepeError("shape has at least two sizes, and kept is a number")
        if not all(type(given.get(key, False)) is bool for key in ("transposed", "ordered")):
            raise CrepeError("transposed and ordered are true or false")
        layout = kind(**{**given, "shape": tuple(given["shape"])})
        layout.parts()
        return layout
    except (KeyError, TypeError, ValueError, CrepeError) as error:
        raise CrepeError(f"config.json describes a tensor in layout {kind.name} wrongly: {about}: {error}") from None


def unpacked(tensors: Mapping[str, Tensor], layouts: Mapping[str, Mapping[str, Any]]) -> dict[str, Tensor]:
    """Tensors of a packed file as the model has them. layouts: the entries of config.json, by name."""
    dense = dict(tensors)
    for name, about in layouts.items():
        layout = parse_layout(about)
        if name in dense:
            parts = {suffix: dense.pop(name + suffix) for suffix in layout.parts()}
            dense[name] = layout.unpack(parts)
    return dense


def as_matrix(tensor: Tensor, transposed: bool) -> Tensor:
    """A parameter of two or three dimensions as (out, in), the experts of a fused one below each other."""
    upright = tensor.transpose(-1, -2) if transposed else tensor
    return upright.reshape(-1, upright.shape[-1])


def from_matrix(matrix: Tensor, shape: tuple[int, ...], transposed: bool) -> Tensor:
    """The inverse of `as_matrix`."""
    if not transposed:
        return matrix.reshape(shape)
    *experts, first, second = shape
    return matrix.reshape(*experts, second, first).transpose(-1, -2).contiguous()
