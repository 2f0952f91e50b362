"""Channel permutation against brute force: gains, optimum, and that nothing is ever lost."""

from __future__ import annotations

from itertools import combinations, permutations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from crepe.refine import permutation
from crepe.refine.permutation import assignment_gains, assignment_rounds, best_order, retained, snake

PATTERNS = [(1, 4), (2, 4), (3, 4), (4, 8), (1, 2), (3, 8)]


def _score(out: int, inputs: int, seed: int = 0) -> Tensor:
    """Columns of different sizes, as activations make them."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(out, inputs, generator=generator) * torch.rand(inputs, generator=generator).exp()


def _whole(out: int, inputs: int, seed: int = 0) -> Tensor:
    """Whole numbers, so that sums are the same in every order."""
    return torch.randint(0, 100, (out, inputs), generator=torch.Generator().manual_seed(seed)).float()


def _retained_by_sorting(score: Tensor, n: int, m: int) -> float:
    groups = score.double().reshape(len(score), -1, m)
    return float(groups.sort(-1, descending=True).values[..., :n].sum())


def _is_order(order: Tensor, inputs: int) -> bool:
    return torch.equal(order.sort().values, torch.arange(inputs))


@pytest.mark.parametrize(("n", "m"), PATTERNS)
def test_retained_is_what_sorting_keeps(n: int, m: int) -> None:
    score, order = _whole(7, 4 * m), torch.randperm(4 * m)
    assert retained(score, n, m) == _retained_by_sorting(score, n, m)
    assert retained(score, n, m, order) == _retained_by_sorting(score[:, order], n, m)


@pytest.mark.parametrize(("n", "m"), PATTERNS)
def test_gains_are_exact(n: int, m: int) -> None:
    groups = 3
    score = _whole(5, groups * m)
    order = torch.randperm(groups * m, generator=torch.Generator().manual_seed(1))
    for slot in range(m):
        gains = assignment_gains(score, order, slot, n, m)
        for group in range(groups):
            for other in range(groups):
                members = order.reshape(groups, m)[group].clone()
                members[slot] = order[other * m + slot]
                assert gains[group, other] == _retained_by_sorting(score[:, members], n, m)


@pytest.mark.parametrize(("rows", "tile", "copy"), [(1, 1, 1), (3, 256, 1000), (64, 1 << 20, 1 << 20)])
def test_gains_do_not_depend_on_the_blocking(monkeypatch: pytest.MonkeyPatch, rows: int, tile: int, copy: int) -> None:
    score, order = _whole(13, 40), torch.randperm(40)
    whole = [assignment_gains(score, order, slot, 2, 4) for slot in range(4)], retained(score, 2, 4, order)
    monkeypatch.setattr(permutation, "_ROWS", rows)
    monkeypatch.setattr(permutation, "_TILE", {"cpu": tile})
    monkeypatch.setattr(permutation, "_COPY", copy)
    for slot, gains in enumerate(whole[0]):
        assert torch.equal(assignment_gains(score, order, slot, 2, 4), gains)
    assert retained(score, 2, 4, order) == whole[1]


@given(st.sampled_from(PATTERNS), st.integers(1, 6), st.integers(1, 5), st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_snake_deals_every_group_one_column_of_every_chunk(
    pattern: tuple[int, int], groups: int, out: int, seed: int
) -> None:
    n, m = pattern
    score = _score(out, groups * m, seed)
    order = snake(score, n, m)
    assert _is_order(order, groups * m)
    rank = score.sum(0, dtype=torch.float64).argsort(stable=True).argsort()
    chunk = rank[order].reshape(groups, m) // groups
    assert torch.equal(chunk, torch.arange(m).expand(groups, m))


def test_snake_turns_round() -> None:
    score = torch.arange(8.0)[None]
    assert snake(score, 2, 4).tolist() == [0, 3, 4, 7, 1, 2, 5, 6]


@given(
    st.sampled_from(PATTERNS),
    st.integers(1, 6),
    st.integers(1, 9),
    st.integers(0, 99),
    st.integers(1, 4),
    st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_retained_never_falls(
    pattern: tuple[int, int], groups: int, out: int, seed: int, block: int, ties: bool
) -> None:
    n, m = pattern
    score = (_whole(out, groups * m, seed) // 40) if ties else _score(out, groups * m, seed)
    start = torch.randperm(groups * m, generator=torch.Generator().manual_seed(seed))
    after = [assignment_rounds(score, start, n, m, rounds, groups=block) for rounds in range(4)]
    kept = [retained(score, n, m, order) for order in after]
    assert all(_is_order(order, groups * m) for order in after)
    assert torch.equal(after[0], start)
    assert kept == sorted(kept)
    best = best_order(score, n, m)
    assert _is_order(best, groups * m)
    assert retained(score, n, m, best) >= max(retained(score, n, m), retained(score, n, m, snake(score, n, m)))


def _optimum(score: Tensor, n: int, m: int) -> float:
    """Over all ways to cut the columns into groups of m."""

    def best(left: tuple[int, ...]) -> float:
        if not left:
            return 0.0
        sets = ((left[0], *rest) for rest in combinations(left[1:], m - 1))
        return max(
            _retained_by_sorting(score[:, list(chosen)], n, m) + best(tuple(set(left) - set(chosen))) for chosen in sets
        )

    return best(tuple(range(score.shape[1])))


def test_optimum_of_the_test_is_that_over_all_orders() -> None:
    score = _whole(3, 6)
    brute = max(_retained_by_sorting(score[:, list(order)], 1, 3) for order in permutations(range(6)))
    assert _optimum(score, 1, 3) == brute


@pytest.mark.parametrize(("n", "m", "inputs"), [(1, 2, 8), (1, 4, 8), (2, 4, 8), (3, 4, 8), (2, 3, 9)])
def test_between_identity_and_optimum(n: int, m: int, inputs: int) -> None:
    reached = []
    for seed in range(8):
        score = _whole(4, inputs, seed)
        kept, optimum = retained(score, n, m, best_order(score, n, m)), _optimum(score, n, m)
        identity = retained(score, n, m)
        assert identity <= kept <= optimum
        reached.append((kept - identity) / (optimum - identity) if optimum > identity else 1.0)
    assert sum(reached) / len(reached) > 0.6


@pytest.mark.parametrize(("n", "m"), [(2, 4), (4, 8)])
def test_assignment_beats_the_snake_and_the_snake_identity(n: int, m: int) -> None:
    score = _score(64, 128)
    dealt = snake(score, n, m)
    best = best_order(score, n, m)
    assert retained(score, n, m) < retained(score, n, m, dealt) < retained(score, n, m, best)
    assert torch.equal(best, best_order(score, n, m))
