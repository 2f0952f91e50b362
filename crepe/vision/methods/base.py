"""What a selection method for image models is.

A method is a tuple of parts; each part says which layers it suits and which of their weights stay:

- a `FilterPart` chooses output channels; the graph removes them with everything that hangs on them;
- a `MaskPart` chooses single weights of layers that keep their shape (taps, columns of a tile);
- a `HeadPart` chooses dimensions inside attention heads.

How many channels a layer keeps is decided outside (uniform, batch-norm quantile, a MACs target, alignment), so a filter
part only ranks. A method is a file of this package that ends with `METHODS.add("name", Method((FilterPart(select),)))`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from crepe.registry import Registry
from crepe.vision.compensation import Moments


@dataclass(frozen=True)
class Layer:
    """Layers with one common set of output channels, as a method sees them: one layer, or several tied by adds.

    name: path of the first layer in the model. weights: of every layer that makes these channels, each
    (out, in / groups, kh, kw) float32, a Linear as (out, in, 1, 1). kind: `conv`, `pointwise`, `depthwise`, `grouped`
    or `linear`, of the first layer. tied: whether other layers share the channels. scales: (out,) absolute batch-norm
    scales of each batch norm that follows directly, in the order of `weights`, empty without batch norm.
    statistics: what the part asked for in `needs`, each (out,) float32. moments: of the inputs of the layer, and gain:
    (out,), what the batch norm behind multiplies each output with, for mask parts that ask for `moments`.
    """

    name: str
    weights: tuple[Tensor, ...]
    kind: str = "conv"
    tied: bool = False
    scales: tuple[Tensor, ...] = ()
    statistics: Mapping[str, Tensor] = field(default_factory=dict)
    moments: Moments | None = None
    gain: Tensor | None = None

    @property
    def weight(self) -> Tensor:
        """(out, in / groups, kh, kw) of the first layer."""
        return self.weights[0]

    @property
    def width(self) -> int:
        return self.weights[0].shape[0]

    @property
    def matrix(self) -> Tensor:
        """(out, K): every weight that makes one channel in one row, all tied layers side by side."""
        return torch.cat([weight.flatten(1) for weight in self.weights], dim=1)


@dataclass(frozen=True)
class Heads:
    """One multi-head attention. query, key, value: (heads, d, in) float32; output: (heads, d, out), the output
    projection transposed. name: path of the attention module. index: its place among the attentions of the model."""

    name: str
    index: int
    query: Tensor
    key: Tensor
    value: Tensor
    output: Tensor


@dataclass(frozen=True)
class HeadChoice:
    """Dimensions that each head keeps, in rising order: query_key (heads, k), value_output (heads, k), int64.
    Every head of one attention keeps the same number."""

    query_key: Tensor
    value_output: Tensor


# (layer, number of channels to keep) -> indices of the kept channels, int64 (keep,), rising.
FilterSelect = Callable[[Layer, int], Tensor]
# (all suitable layers by name, in the order of the model; share of their weights to remove) -> masks by name, True =
# kept, each of the shape of `layer.weight`. A layer that is left out stays dense.
MaskSelect = Callable[[Mapping[str, Layer], float], Mapping[str, Tensor]]
# (attention, share of the dimensions to remove) -> choice; None leaves the attention dense.
HeadSelect = Callable[[Heads, float], HeadChoice | None]


def any_layer(layer: Layer) -> bool:
    return True


@dataclass(frozen=True)
class FilterPart:
    """Removes channels. suits: whether the part wants a layer (the graph has already left out what cannot be cut).

    needs: statistics, computed on calibration images: `taylor`, the sum over batches of (sum of gradient times weight
    of the filter)^2; `tokens`, the importance of the channel for class token and patches. seeks_tied: also cut
    layers that residual adds tie to others; these keep the same channels together. spares_first: leave the first
    layer that suits as it is, unless --include names it.
    """

    select: FilterSelect
    suits: Callable[[Layer], bool] = any_layer
    needs: frozenset[str] = frozenset()
    seeks_tied: bool = False
    spares_first: bool = False


@dataclass(frozen=True)
class MaskPart:
    """Zeroes weights of layers that keep their shape. pattern: the name that the manifest gives to these zeros.

    needs: `moments`, where the part looks at what the layers read of the calibration images. score: what is worked out
    once for each layer, whatever share it will lose; `select` finds it in the layer's `statistics`, as `score`.
    """

    select: MaskSelect
    pattern: str
    suits: Callable[[Layer], bool] = any_layer
    needs: frozenset[str] = frozenset()
    score: Callable[[Layer], Tensor] | None = None


@dataclass(frozen=True)
class HeadPart:
    """Removes dimensions inside attention heads. rotates: the heads are turned first, by calibration images, so that
    their dimensions come in order of importance; `select` then chooses among the turned ones."""

    select: HeadSelect
    rotates: bool = False


@dataclass(frozen=True)
class Method:
    """One way to prune an image model: its parts are applied in order, all selected on the dense weights."""

    parts: tuple[FilterPart | MaskPart | HeadPart, ...]

    @property
    def needs(self) -> frozenset[str]:
        return frozenset().union(*(part.needs for part in self.parts if not isinstance(part, HeadPart)))


METHODS: Registry[Method] = Registry("method", "crepe.vision.methods")


def largest(score: Tensor, keep: int) -> Tensor:
    """Indices of the `keep` largest entries of `score` (out,), rising; ties go to the lower index."""
    return torch.argsort(score, descending=True, stable=True)[:keep].sort().values
