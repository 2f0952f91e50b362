"""Channel permutation for N:M: an order of the input columns in which an N:M selection keeps more score.

Start: RIA's snake (Zhang et al. 2024, "Plug-and-Play", sec. 3.3). Then rounds of linear assignment: one column of
every group is taken out and all are dealt to the groups again so that the kept score is the largest. The gain of
every pair (group, column) has a closed form, because with K kept of M

    kept(group without its slot, column x) = (sum of the K - 1 largest of the M - 1 others) + max(K-th largest, x)
"""

from __future__ import annotations

import torch
from torch import Tensor

from crepe.masks.pattern import Compare, NofM, Pattern

# Rows whose sums are taken in float32 before they go to float64.
_ROWS = 256
# Bytes of one piece of the (groups, columns, rows) maximum: what fits a core's cache, and what fills a GPU.
_TILE = {"cpu": 1 << 20}
_TILE_ELSEWHERE = 64 << 20
# Groups that one assignment covers; RIA's --fast does the same with a fixed number of blocks per layer.
_GROUPS = 512
# Bytes of scores that are copied at a time.
_COPY = 32 << 20
# A round that raises the kept score by less than this share is the last.
_RISE = 2e-4


def best_order(score: Tensor, n: int, m: int, rounds: int = 8) -> Tensor:
    """The better of the snake and the order as it stands, improved by assignment; never worse than as it stands.

    score: (out, in) float32, `in` a multiple of m. Returns (in,) int64: position j takes column order[j].
    """
    start = torch.arange(score.shape[1], device=score.device)
    dealt = snake(score, n, m)
    if retained(score, n, m, dealt) > retained(score, n, m, start):
        start = dealt
    return assignment_rounds(score, start, n, m, rounds)


def retained(score: Tensor, n: int, m: int, order: Tensor | None = None) -> float:
    """Sum of the n largest scores of every m neighbours, in float64. score: (out, in); order: (in,)."""
    total = 0.0
    for rows in torch.split(score, max(1, _COPY // (score.shape[1] * score.element_size()))):
        groups = (rows if order is None else rows[:, order]).reshape(len(rows), -1, m)
        total += sum(float(part.sum(dtype=torch.float64)) for part in _largest(list(groups.unbind(-1)), n))
    return total


def snake(score: Tensor, n: int, m: int) -> Tensor:
    """Columns by ascending sum, cut into m chunks; chunk s fills slot s of all groups, every second one backwards.

    So that every group gets columns of every size. score: (out, in). Returns (in,) int64.
    """
    chunks = score.sum(0, dtype=torch.float64).argsort(stable=True).reshape(m, -1)
    return torch.stack([chunk.flip(0) if slot % 2 else chunk for slot, chunk in enumerate(chunks)], 1).reshape(-1)


def assignment_rounds(score: Tensor, order: Tensor, n: int, m: int, rounds: int = 8, groups: int = _GROUPS) -> Tensor:
    """Improve `order` slot by slot, round by round, until the kept score does not rise any more or `rounds` are done.

    score: (out, in); order: (in,). groups: how many one assignment covers at most; with more, those of one assignment
    lie far apart in the first round and side by side in the next, in turn.
    """
    at_most = max(1, min(groups, _COPY // (len(score) * m * score.element_size())))
    kept = retained(score, n, m, order)
    for number in range(rounds):
        blocks = _blocks_of_groups(len(order) // m, at_most, number, order.device)
        candidate = _one_round(score, order, n, m, blocks)
        now = retained(score, n, m, candidate)
        if now <= kept:
            break
        order, rise, kept = candidate, now - kept, now
        if rise < _RISE * kept:
            break
    return order


def assignment_gains(score: Tensor, order: Tensor, slot: int, n: int, m: int) -> Tensor:
    """What is kept in group g when the column in `slot` of group c goes there instead of g's own: [g, c].

    score: (out, in); order: (groups * m,) int64, all columns or some. Returns (groups, groups) float64.
    """
    groups = len(order) // m
    gains = torch.zeros(groups, groups, dtype=torch.float64, device=score.device)
    for rows in torch.split(score, max(1, min(_ROWS, _COPY // (len(order) * score.element_size())))):
        slots = list(rows.T[order].reshape(groups, m, len(rows)).unbind(1))
        moving = slots.pop(slot)
        *sure, bar = _largest(slots, n)
        for part in sure:
            gains += part.sum(1, dtype=torch.float64)[:, None]
        _add_sums_of_maxima(gains, bar, moving.contiguous())
    return gains


def _add_sums_of_maxima(total: Tensor, bars: Tensor, columns: Tensor) -> None:
    """total[g, c] += sum over rows of max(bars[g], columns[c]). bars, columns: (groups, rows)."""
    tile = _TILE.get(total.device.type, _TILE_ELSEWHERE)
    step = max(1, tile // (columns.numel() * columns.element_size()))
    for first in range(0, len(bars), step):
        total[first : first + step] += torch.maximum(bars[first : first + step, None], columns).sum(-1)


def _largest(members: list[Tensor], n: int) -> list[Tensor]:
    """The n largest of the members at every place, in falling order: as many passes of a bubble sort.

    Much faster than a sort along a short axis. members: tensors of one shape, more than n of them or n.
    """
    members = list(members)
    for done in range(n):
        for i in range(len(members) - 1, done, -1):
            high, low = torch.maximum(members[i - 1], members[i]), torch.minimum(members[i - 1], members[i])
            members[i - 1], members[i] = high, low
    return members[:n]


def _one_round(score: Tensor, order: Tensor, n: int, m: int, blocks: list[Tensor]) -> Tensor:
    """Every slot once, within each of `blocks`, which hold numbers of groups."""
    groups = order.reshape(-1, m).clone()
    for block in blocks:
        columns = groups[block].reshape(-1)
        # Columns side by side in memory: they are gathered again for every slot.
        local = score.T[columns].T
        slots = torch.arange(len(columns), device=order.device).reshape(-1, m)
        for slot in range(m):
            slots[:, slot] = slots[_assigned(assignment_gains(local, slots.reshape(-1), slot, n, m)), slot]
        groups[block] = columns[slots]
    return groups.reshape(-1)


def _assigned(gains: Tensor) -> Tensor:
    """For every row the column that it gets, each column once, with the largest sum. gains: (groups, groups)."""
    from scipy.optimize import linear_sum_assignment

    _, columns = linear_sum_assignment(gains.cpu().numpy(), maximize=True)
    return torch.from_numpy(columns).to(gains.device)


def _blocks_of_groups(total: int, at_most: int, number: int, device: torch.device) -> list[Tensor]:
    """Numbers 0..total-1 in equal parts: every k-th one in rounds of even `number`, neighbours in the others."""
    parts = -(-total // at_most)
    numbers = torch.arange(total, device=device)
    if number % 2:
        return list(numbers.tensor_split(parts))
    return [numbers[first::parts] for first in range(parts)]


def needs_groups(pattern: Pattern, compare: Compare) -> str | None:
    """The obstacle of refinements that reorder columns: only groups of neighbours care about their order."""
    if any(isinstance(option, NofM) for option in pattern.alternatives):
        return None
    return "the order of columns matters for N:M patterns such as 2:4 only"
