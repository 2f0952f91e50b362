"""Units that can be removed: MLP channels, and key-value heads with their query heads, with all that belongs to them.

A coupling says which rows stand behind the columns of a consumer. A unit is some of these columns with everything
that only they depend on, and what that is is tried: with the unit's columns at zero, the block must compute the same
whether the rest of the unit is there or not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from crepe.models.blocks import Block
from crepe.models.coupling import Coupling, Memory, find_couplings, row_vectors, scope_of, thirds
from crepe.models.probe import Run, distance, random_weights, real_tensors, unchanged
from crepe.models.views import View, inventory


@dataclass(frozen=True, eq=False)
class Part:
    """What of one parameter belongs to each unit.

    name: of the parameter; dim: of the parameter, along which `index` (units, size) counts; expert: the one that is
    meant where the parameter holds several; view: where the parameter is a matrix.
    """

    name: str
    owner: nn.Module
    attribute: str
    dim: int
    index: Tensor
    expert: int | None = None
    view: View | None = None

    def clear(self, removed: Tensor) -> None:
        """Put zeros in place of the units that are `removed`, bool (units,)."""
        self.along(lambda tensor, dim, index: tensor.index_fill_(dim, index, 0.0), removed)

    def along(self, change: object, units: Tensor) -> None:
        """change(tensor, dim, index) on this part's tensor, which shares the parameter's memory."""
        tensor = getattr(self.owner, self.attribute).detach()
        tensor, dim = (tensor, self.dim) if self.expert is None else (tensor[self.expert], self.dim - 1)
        change(tensor, dim, self.index[units].reshape(-1).to(tensor.device))  # type: ignore[operator]


@dataclass(frozen=True, eq=False)
class UnitGroup:
    """The units that go through one consumer.

    consumer: its columns; producers: rows of the matrices behind them; vectors: biases and what else has an entry for
    each unit; heads: groups of the consumer's columns in a unit (query heads of a key-value head; a channel: 1).
    """

    consumer: Part
    producers: tuple[Part, ...]
    vectors: tuple[Part, ...]
    heads: int = 1

    @property
    def name(self) -> str:
        return self.view.name

    @property
    def view(self) -> View:
        found = self.consumer.view
        assert found is not None, "a consumer is a matrix"
        return found

    @property
    def units(self) -> int:
        return len(self.consumer.index)

    @property
    def width(self) -> int:
        """Columns of the consumer that make up a unit."""
        return self.consumer.index.shape[1]

    @property
    def parts(self) -> tuple[Part, ...]:
        return (self.consumer, *self.producers, *self.vectors)

    @property
    def matrices(self) -> tuple[Part, ...]:
        return (self.consumer, *self.producers)

    @property
    def views(self) -> list[View]:
        """Each matrix once: a fused one may be in several parts."""
        return list({part.view.name: part.view for part in self.matrices if part.view is not None}.values())


@dataclass(frozen=True)
class Found:
    """The units of one block; reason: why there are none."""

    groups: list[UnitGroup]
    reason: str = ""


def find_units(block: Block, run: Run, unit: str, memory: Memory | None = None) -> Found:
    """The units of kind `unit` ("channel" or "head") in `block`.

    run: the block on a few dozen tokens of one text; it runs with random weights in a second set of tensors.
    memory: see `find_couplings`.
    """
    couplings = find_couplings(block, run, memory)
    views = inventory(block, None).views
    with random_weights(block.module, views):
        kind = [coupling for coupling in couplings if _mixes_positions(coupling, run) == (unit == "head")]
        trial = _Trial(run, real_tensors(run()))
        return _channels(kind, trial) if unit == "channel" else _heads(kind, block, views, trial)


# Channels


def _channels(couplings: Sequence[Coupling], trial: _Trial) -> Found:
    together: dict[str, list[UnitGroup]] = {}
    for coupling in couplings:
        if tuple(coupling.columns.shape[:2]) == (1, 1):
            group = _channel_group(coupling)
            # The experts of one tensor are one question: not every one is reached by a token.
            together.setdefault(group.consumer.name, []).append(group)
    found = [group for groups in together.values() if trial.holds(groups) for group in groups]
    return Found(found, "" if found else "no matrix in it gets its inputs channel by channel from others")


def _channel_group(coupling: Coupling) -> UnitGroup:
    producers = [_rows(producer.view, producer.rows[0][:, None]) for producer in coupling.producers]
    vectors = [part for producer in producers for part in _beside(producer)]
    return UnitGroup(_columns(coupling.consumer, coupling.columns[0, 0][:, None]), tuple(producers), tuple(vectors))


def _mixes_positions(coupling: Coupling, run: Run) -> bool:
    """Does what a producer gives at the first position reach the consumer at another? Attention does, an MLP not."""
    producer, consumer = coupling.producers[0].view.owner, coupling.consumer.owner
    if producer is consumer:  # fused experts
        return False
    seen: list[Tensor] = []

    def disturb(module: nn.Module, args: object, output: Tensor) -> Tensor:
        changed = output.clone()
        changed.reshape(-1, output.shape[-1])[0] += output.abs().max()
        return changed

    def look(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        seen.append(args[0].reshape(-1, args[0].shape[-1])[1:].clone())

    watch = consumer.register_forward_pre_hook(look)
    try:
        run()
        hook = producer.register_forward_hook(disturb)
        try:
            run()
        finally:
            hook.remove()
    finally:
        watch.remove()
    half = len(seen) // 2
    return any(not torch.equal(one, other) for one, other in zip(seen[:half], seen[half:], strict=True))


# Heads


def _heads(couplings: Sequence[Coupling], block: Block, views: Sequence[View], trial: _Trial) -> Found:
    reason = "no attention in it hands values to an output projection head by head"
    found = []
    for coupling in couplings:
        if coupling.columns.shape[0] == 1:
            reason = f"{coupling.consumer.name!r} has one key-value head, which cannot be halved"
            continue
        group = _head_group(coupling, block, views, trial)
        if group is None:
            reason = f"the queries and keys behind {coupling.consumer.name!r} do not lie head by head"
        else:
            found.append(group)
    return Found(found, "" if found else reason)


def _head_group(coupling: Coupling, block: Block, views: Sequence[View], trial: _Trial) -> UnitGroup | None:
    """The output projection's columns with the value rows, and what else belongs to the key-value heads."""
    shared, tied, _ = coupling.columns.shape
    consumer = _columns(coupling.consumer, coupling.columns.reshape(shared, -1))
    scope = scope_of(coupling.consumer)
    producers: list[Part] = []
    for view in (view for view in views if view.name != coupling.consumer.name and scope_of(view) == scope):
        layouts = (_rows(view, index) for index in _head_rows(view, coupling))
        fitting = (rows for rows in layouts if trial.belongs(consumer, (rows, *_beside(rows))))
        producers += [rows] if (rows := next(fitting, None)) is not None else []
    values = sum(producer.rows.numel() for producer in coupling.producers)
    if sum(part.index.numel() for part in producers) <= values:
        return None
    candidates = _entries(block, scope, {view.owner for view in views}, shared, tied)
    extras = [part for part in candidates if trial.belongs(consumer, (part,))]
    vectors = [*(part for producer in producers for part in _beside(producer)), *extras]
    group = UnitGroup(consumer, tuple(producers), tuple(vectors), tied)
    return group if trial.holds([group]) else None


def _head_rows(view: View, coupling: Coupling) -> Iterator[Tensor]:
    """Rows (key-value heads, size) in every layout in which `view` may hold them."""
    shared, tied, size = coupling.columns.shape
    outputs, rows = view.shape[0], torch.arange(view.shape[0])
    if outputs % shared == 0:
        yield rows.reshape(shared, -1)
    values = next((producer.rows for producer in coupling.producers if producer.view.name == view.name), None)
    if values is None:
        return
    each, odd = divmod(outputs - shared * size, shared * (tied + 1))
    if not odd and each > 0:  # all queries, then all keys, then all values
        queries, keys, rest = torch.split(rows, [shared * tied * each, shared * each, shared * size])
        yield torch.cat([part.reshape(shared, -1) for part in (queries, keys, rest)], 1)
    if outputs == 3 * shared * size:
        layouts = (layout for layout in thirds(shared, size) if (layout == values[:, None]).all(-1).any(1).all())
        yield from (layout.reshape(shared, -1) for layout in layouts)
    yield values


def _entries(block: Block, scope: str, owners: set[nn.Module], shared: int, tied: int) -> Iterator[Part]:
    """Vectors beside the matrices that have an entry for each head."""
    prefix = f"{block.name}." if block.name else ""
    parent = block.module.get_submodule(scope.removeprefix(prefix) if scope != block.name else "")
    for path, module in parent.named_modules():
        for attribute, parameter in module.named_parameters(recurse=False):
            if module not in owners and parameter.dim() == 1 and parameter.numel() in (shared, shared * tied):
                index = torch.arange(parameter.numel()).reshape(shared, -1)
                yield Part(".".join(p for p in (scope, path, attribute) if p), module, attribute, 0, index)


# Parts


def _rows(view: View, index: Tensor) -> Part:
    return _matrix_part(view, int(view.transposed), index)


def _columns(view: View, index: Tensor) -> Part:
    return _matrix_part(view, 1 - int(view.transposed), index)


def _matrix_part(view: View, dim: int, index: Tensor) -> Part:
    dim += view.expert is not None
    return Part(view.name.partition("[")[0], view.owner, view.attribute, dim, index, view.expert, view)


def _beside(rows: Part) -> list[Part]:
    """The biases that go with rows of a matrix."""
    assert rows.view is not None
    owner, dim = rows.name.rpartition(".")[0], int(rows.expert is not None)
    names = row_vectors(rows.view)
    return [Part(f"{owner}.{name}", rows.owner, name, dim, rows.index, rows.expert) for name in names]


# Trials


@dataclass(frozen=True)
class _Trial:
    """run: the block with random weights; before: what it returned with nothing removed."""

    run: Run
    before: Sequence[Tensor]

    def holds(self, groups: Sequence[UnitGroup]) -> bool:
        """Do every other unit's columns take all else of these units with them, whatever it holds?"""
        consumers = [group.consumer for group in groups]
        return self._same(consumers, [part for group in groups for part in group.parts], every_other)

    def belongs(self, consumer: Part, parts: Sequence[Part]) -> bool:
        """Do `parts` reach the output through the units of `consumer` alone, each through its own?

        Every other head has the same rows in several layouts of a fused matrix; an uneven choice tells them apart.
        """
        with removed(parts):
            alone = real_tensors(self.run())
        both = [consumer, *parts]
        return self._differ(self.before, alone) and all(self._same([consumer], both, s) for s in (every_other, uneven))

    def _same(self, consumers: Sequence[Part], parts: Sequence[Part], select: Select) -> bool:
        with removed(consumers, select):
            masked = real_tensors(self.run())
        with removed(parts, select):
            whole = real_tensors(self.run())
        if not len(self.before) == len(masked) == len(whole):
            return False
        three = zip(masked, whole, self.before, strict=True)
        return self._differ(self.before, masked) and all(unchanged(*each) for each in three)

    @staticmethod
    def _differ(before: Sequence[Tensor], after: Sequence[Tensor]) -> bool:
        return any(bool((distance(a, b)[torch.isfinite(a)] > 0).any()) for a, b in zip(before, after, strict=True))


# A number of units -> which go, bool (units,).
Select = Callable[[int], Tensor]


def every_other(units: int) -> Tensor:
    return torch.arange(units) % 2 == 1


def uneven(units: int) -> Tensor:
    """Those of number 1, 2, 4, 8 and so on."""
    every = torch.arange(units)
    return (every > 0) & (every & (every - 1) == 0)


@contextmanager
def removed(parts: Sequence[Part], select: Select = every_other) -> Iterator[None]:
    """The selected units are at zero inside."""
    parameters = {(id(part.owner), part.attribute): getattr(part.owner, part.attribute) for part in parts}
    saved = [(parameter, parameter.data.clone()) for parameter in parameters.values()]
    for part in parts:
        part.clear(select(len(part.index)))
    try:
        yield
    finally:
        for parameter, data in saved:
            parameter.data.copy_(data)
