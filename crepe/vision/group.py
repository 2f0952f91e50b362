"""Channels that can only go together: plain data about the network's graph."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Member:
    """A layer that a group touches. name: its path; indices: (per channel of the group, positions in the layer),
    int64 (width, n), n > 1 where a channel is spread by a flatten."""

    name: str
    indices: Tensor

    def at(self, channels: Tensor) -> Tensor:
        """Positions in the layer that belong to `channels` of the group."""
        return self.indices[channels].flatten()


@dataclass(frozen=True)
class Group:
    """One set of channels.

    name: the layer that makes them, the first where several do. width: how many there are. makers: convolutions and
    Linear layers that produce them; followers: depth-wise convolutions that go with them; norms: batch norms over
    them; users: layers that read them. folds: in so many equal parts the channels are laid out by grouped convolutions,
    and the same positions go from every part. tied: an addition makes layers share the channels. obstacle: why the
    group cannot be cut, None where it can.
    """

    name: str
    width: int
    makers: tuple[Member, ...]
    followers: tuple[Member, ...] = ()
    norms: tuple[Member, ...] = ()
    users: tuple[Member, ...] = ()
    folds: int = 1
    tied: bool = False
    obstacle: str | None = None

    @property
    def units(self) -> int:
        """How many things there are to choose from: channels, or positions in each part of a grouped layer."""
        return self.width // self.folds

    def channels(self, units: Tensor) -> Tensor:
        """Channels of the group that belong to `units`, rising."""
        starts = torch.arange(self.folds)[:, None] * self.units
        return (starts + units[None]).flatten()

    def removed(self, kept: Tensor) -> Tensor:
        """Channels that go when the units `kept` stay, rising."""
        mask = torch.ones(self.width, dtype=torch.bool)
        mask[self.channels(kept)] = False
        return mask.nonzero().flatten()
