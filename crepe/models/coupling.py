"""Couplings: where an order of a matrix' input columns can be folded into the output rows of what produces them.

down(act(gate(x)) * up(x)) stays the same when the columns of `down` and the rows of `gate` and `up` change places
alike, and so does an output projection with the value rows of each head. Shapes and the flow of one run suggest
candidates; what counts is that the block computes the same with a candidate permuted as without.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor, nn

from crepe.models.blocks import Block
from crepe.models.probe import Run, distance, random_weights, real_tensors, unchanged
from crepe.models.views import View, inventory

# What was found for matrices of one structure, to be kept by who asks for several blocks.
Memory = dict[object, "tuple[_Rule, ...]"]

# Sizes of heads that are tried, beside one head that is the whole input.
_HEAD_SIZES = range(4, 513)


@dataclass(frozen=True, eq=False)
class Producer:
    """rows: (blocks, size), the output row of `view` behind each movable column."""

    view: View
    rows: Tensor


@dataclass(frozen=True, eq=False)
class Coupling:
    """The columns of `consumer` that may change places, with the rows that have to follow.

    columns: (blocks, tied, size): a column moves inside its group of `size` only; the `tied` groups of a block move
    alike, because the same rows stand behind them (query heads that share a key-value head).
    """

    consumer: View
    columns: Tensor
    producers: tuple[Producer, ...]

    def inner(self, order: Tensor) -> Tensor:
        """(blocks, size): the order inside each block's groups. order: (in,). Raises ValueError where not allowed."""
        order = order.to(self.columns.device)
        place = torch.full_like(order, -1)
        place[self.columns] = torch.arange(self.columns.shape[-1]).expand_as(self.columns)
        inner = place[order[self.columns]]
        moved = torch.arange(len(order))
        moved[self.columns] = self.columns.gather(-1, inner[:, :1].expand_as(inner))
        if not torch.equal(moved, order) or not torch.equal(order.sort().values, torch.arange(len(order))):
            raise ValueError(f"order moves columns of {self.consumer.name!r} in a way that its producers cannot follow")
        return inner[:, 0]


def permute_coupling(coupling: Coupling, order: Tensor) -> None:
    """Move the consumer's columns and the producers' rows and biases in place: column j becomes column order[j]."""
    inner = coupling.inner(order)
    _permute_columns(coupling, order)
    _permute_rows(coupling, inner)


def random_order(coupling: Coupling, generator: torch.Generator) -> Tensor:
    """An allowed order (in,) that leaves no movable column where it is."""
    blocks, _, size = coupling.columns.shape
    order = torch.arange(coupling.consumer.shape[1])
    for block in range(blocks):
        cycle = torch.randperm(size, generator=generator)
        inner = torch.empty_like(cycle)
        inner[cycle] = cycle.roll(1)
        order[coupling.columns[block]] = coupling.columns[block][:, inner]
    return order


def find_couplings(block: Block, run: Run, memory: Memory | None = None) -> list[Coupling]:
    """The verified couplings of `block`, at most one for each matrix.

    The check runs with random weights in a second set of tensors; the block's own are not touched. A few dozen tokens
    are enough for `run`; it is called twice for every candidate. memory: an empty dictionary to be passed for all
    blocks of a model; what was found for one block is then the only candidate for its likes.
    """
    memory = {} if memory is None else memory
    views = inventory(block, None).views
    flow = _flow(views, run)
    found: list[Coupling] = []
    with random_weights(block.module, views):
        before = real_tensors(run())
        for likeness, twins in _twins(views).items():
            for consumer in range(len(twins[0])):
                key = (likeness, consumer)
                rules = memory[key] if key in memory else _rules(twins[0], consumer, flow)
                rule = next((r for r in rules if _holds(_instances(r, twins), run, before)), None)
                memory.setdefault(key, (rule,) if rule else ())
                found += _instances(rule, twins) if rule else ()
    return found


def verified(candidate: Sequence[Coupling], run: Run, seed: int = 0) -> bool:
    """Does a random allowed order of all couplings in `candidate` leave what `run` returns as it is?

    The change is held against the one that the consumers' columns alone make. Where those make none, nothing is
    shown (no token came by) and the answer is no. The weights are as before after.
    """
    return _holds(candidate, run, real_tensors(run()), seed)


# Moving


def _permute_columns(coupling: Coupling, order: Tensor) -> None:
    """order: (in,)."""
    matrix = coupling.consumer.matrix()
    matrix.copy_(matrix[:, order.to(matrix.device)])


def _permute_rows(coupling: Coupling, inner: Tensor) -> None:
    """inner: (blocks, size)."""
    for producer in coupling.producers:
        for tensor in (producer.view.matrix(), *row_vectors(producer.view).values()):
            to = producer.rows.to(tensor.device)
            tensor[to.reshape(-1)] = tensor[to.gather(1, inner.to(tensor.device)).reshape(-1)]


def row_vectors(view: View) -> dict[str, Tensor]:
    """What the owner holds per output row beside the matrix, by attribute: its bias. Each (out,), sharing memory."""
    wanted = view.shape[:1] if view.expert is None else (view.parameter.shape[0], view.shape[0])
    others = {n: p.detach() for n, p in view.owner.named_parameters(recurse=False) if n != view.attribute}
    fitting = {name: parameter for name, parameter in others.items() if tuple(parameter.shape) == wanted}
    if len(fitting) > 1:  # the biases of several fused matrices
        fitting = {name: parameter for name, parameter in fitting.items() if name.startswith(view.attribute)}
    return fitting if view.expert is None else {name: found[view.expert] for name, found in fitting.items()}


@contextmanager
def _moved(
    couplings: Sequence[Coupling], orders: Sequence[Tensor], move: Callable[[Coupling, Tensor], None]
) -> Iterator[None]:
    for coupling, order in zip(couplings, orders, strict=True):
        move(coupling, order)
    try:
        yield
    finally:
        for coupling, order in zip(reversed(couplings), reversed(orders), strict=True):
            move(coupling, order.argsort(-1))


# Checking


def _holds(candidate: Sequence[Coupling], run: Run, before: Sequence[Tensor], seed: int = 0) -> bool:
    """See `verified`. before: what `run` returned with nothing moved."""
    generator = torch.Generator().manual_seed(seed)
    orders = [random_order(coupling, generator) for coupling in candidate]
    inner = [coupling.inner(order) for coupling, order in zip(candidate, orders, strict=True)]
    with _moved(candidate, orders, _permute_columns):
        broken = real_tensors(run())
        with _moved(candidate, inner, _permute_rows):
            coupled = real_tensors(run())
    if not len(before) == len(broken) == len(coupled):
        return False
    reached = any(bool((distance(a, b)[torch.isfinite(a)] > 0).any()) for a, b in zip(before, broken, strict=True))
    return reached and all(unchanged(*three) for three in zip(before, coupled, broken, strict=True))


# Suggesting


@dataclass(frozen=True, eq=False)
class _Rule:
    """A candidate by position among the matrices of one scope. producers: (position, rows (blocks, size))."""

    consumer: int
    columns: Tensor
    producers: tuple[tuple[int, Tensor], ...]


# Owner of a matrix -> when it ran first and on what (address and size of its input), of those that ran.
_Flow = Mapping[nn.Module, tuple[int, tuple[int, int]]]


def _flow(views: Sequence[View], run: Run) -> _Flow:
    seen: dict[nn.Module, tuple[int, tuple[int, int]]] = {}
    alive = []  # so that no address is used twice

    def note(module: nn.Module, args: tuple[object, ...]) -> None:
        if module not in seen and args and isinstance(args[0], Tensor):
            alive.append(args[0])
            seen[module] = (len(seen), (args[0].data_ptr(), args[0].numel()))

    hooks = [owner.register_forward_pre_hook(note) for owner in {view.owner: None for view in views}]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    return seen


def _may_feed(producer: View, consumer: View, flow: _Flow) -> bool:
    """Not where the producer ran later, or on the same input (as queries and values do)."""
    if producer.owner is consumer.owner or producer.owner not in flow or consumer.owner not in flow:
        return True
    (first, its_input), (second, other_input) = flow[producer.owner], flow[consumer.owner]
    return first < second and its_input != other_input


def _twins(views: Sequence[View]) -> dict[object, list[list[View]]]:
    """Scopes of equal structure, together: the experts of one layer are one question, not many.

    A scope is the matrices that lie beside each other: in the children of one module, or one expert of one module.
    """
    scopes: dict[tuple[str, int | None], list[View]] = {}
    for view in views:
        scopes.setdefault((scope_of(view), view.expert), []).append(view)
    twins: dict[object, list[list[View]]] = {}
    for (path, _), members in scopes.items():
        likeness = tuple((re.sub(r"\d+", "*", view.name), view.shape, view.transposed) for view in members)
        twins.setdefault((re.sub(r"\d+", "*", path), likeness), []).append(members)
    return twins


def scope_of(view: View) -> str:
    """The path of the module whose children the matrices beside this one are."""
    owner = view.name.partition("[")[0].rpartition(".")[0]
    return owner if view.expert is not None else owner.rpartition(".")[0]


def _instances(rule: _Rule, twins: Sequence[Sequence[View]]) -> tuple[Coupling, ...]:
    return tuple(
        Coupling(views[rule.consumer], rule.columns, tuple(Producer(views[i], rows) for i, rows in rule.producers))
        for views in twins
    )


def _rules(views: Sequence[View], consumer: int, flow: _Flow) -> Iterator[_Rule]:
    """Everything that the shapes allow, the freest first."""
    inputs = views[consumer].shape[1]
    feeding = [i for i, v in enumerate(views) if i != consumer and _may_feed(v, views[consumer], flow)]
    every = torch.arange(inputs)
    for several in _elementwise([i for i in feeding if views[i].shape[0] == inputs]):
        yield _Rule(consumer, every.reshape(1, 1, -1), tuple((i, every[None]) for i in several))
    for i in reversed(feeding):
        for first, second in _halves(views[i].shape[0], inputs):
            yield _Rule(consumer, every.reshape(1, 1, -1), ((i, first[None]), (i, second[None])))
    for i in reversed(feeding):
        for columns, rows in _heads(views[i].shape[0], inputs):
            yield _Rule(consumer, columns, ((i, rows),))


def _elementwise(feeding: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Two or more producers whose outputs meet element by element: all, then fewer where there are three."""
    for count in range(len(feeding), 1, -1):
        if count == len(feeding) or len(feeding) == 3:
            yield from combinations(feeding, count)


def _halves(outputs: int, inputs: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The rows of two matrices in one, behind each other or in turn."""
    if outputs == 2 * inputs:
        rows = torch.arange(outputs)
        yield rows[:inputs], rows[inputs:]
        yield rows[0::2], rows[1::2]


def _heads(outputs: int, inputs: int) -> Iterator[tuple[Tensor, Tensor]]:
    """One producer with heads of every possible size, the largest (one head, all columns free) first.

    Yields columns (key-value heads, query heads of each, size) and rows (key-value heads, size).
    """
    for size in (inputs, *(s for s in reversed(_HEAD_SIZES) if s < inputs and inputs % s == 0)):
        heads = inputs // size
        for first, stride, shared in _head_layouts(outputs, heads, size):
            if shared > 0 and heads % shared == 0:
                columns = torch.arange(inputs).reshape(shared, heads // shared, size)
                yield columns, first + stride * torch.arange(shared)[:, None] + torch.arange(size)
        if outputs == 3 * inputs:
            for layout in thirds(heads, size):
                for part in range(3):
                    yield torch.arange(inputs).reshape(heads, 1, size), layout[:, part]


def thirds(heads: int, size: int) -> Iterator[Tensor]:
    """Rows (heads, 3, size) of a fused matrix of three equal parts (values among them) whose heads lie in groups: each
    group has the first part of all its heads, then the second, then the third. From one group to one head in each."""
    rows = torch.arange(heads * 3 * size)
    for groups in (count for count in range(1, heads + 1) if heads % count == 0):
        yield rows.reshape(groups, 3, heads // groups, size).transpose(1, 2).reshape(heads, 3, size)


def _head_layouts(outputs: int, heads: int, size: int) -> Iterator[tuple[int, int, int]]:
    """(first, stride, key-value heads): the value rows of key-value head h begin at first + h * stride."""
    if outputs % size == 0:
        yield 0, size, outputs // size
        shared, odd = divmod(outputs // size - heads, 2)
        if not odd and shared > 0:  # queries, keys and values in one
            yield outputs - shared * size, size, shared
            stride = outputs // shared
            yield stride - size, stride, shared
    if outputs % heads == 0 and outputs > heads * size:  # something else before each head's values
        yield outputs // heads - size, outputs // heads, heads
