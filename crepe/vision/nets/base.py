"""The registry of nets: a name to a class whose arguments are plain values, so that a config file can hold them."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from crepe.registry import Registry

NETS: Registry[Callable[..., nn.Module]] = Registry("net", "crepe.vision.nets")
