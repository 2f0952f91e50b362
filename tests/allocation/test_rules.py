"""Every rule: the conformance that all pass, and each formula against a naive float64 reference."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from crepe.allocation import ALLOCATIONS, Budget
from crepe.allocation.alpha import EPSILON, tail_exponent
from crepe.allocation.base import Summary
from crepe.allocation.error import SPREAD, grids
from crepe.allocation.owl import LAMBDA, OUTLIER
from crepe.errors import CrepeError
from crepe.masks import Matrix, NofM, Pattern, Unstructured, kept_count, output_error, parse_pattern

NAMES = ALLOCATIONS.names()
SHAPES = {"q": (24, 16), "v": (8, 16), "down": (16, 40)}
BLOCKS = 4
Blocks = list[dict[str, Matrix]]


def _matrix(shape: tuple[int, int], seed: int, pattern: Pattern, sparsity: float) -> Matrix:
    generator = torch.Generator().manual_seed(seed)
    # Tails that differ from block to block, so that every rule has something to see.
    dense = torch.randn(shape, generator=generator)
    dense = dense.sign() * dense.abs() ** (1 + seed % 5)
    inputs = torch.randn(64, shape[1], generator=generator) * torch.rand(shape[1], generator=generator)
    gram = inputs.T @ inputs
    score = dense.abs() * gram.diagonal().sqrt()
    kept = pattern.select(score, sparsity)
    statistics = {"norm": gram.diagonal().sqrt(), "gram": gram, "tokens": torch.tensor(64)}
    return Matrix(dense, dense * kept, kept, score, statistics, pattern, sparsity)


def _blocks(pattern: Pattern, sparsity: float) -> tuple[Blocks, Budget]:
    blocks = [
        {f"{b}.{n}": _matrix(s, 7 * b + i, pattern, sparsity) for i, (n, s) in enumerate(SHAPES.items())}
        for b in range(BLOCKS)
    ]
    shapes = {name: SHAPES[name.partition(".")[2]] for block in blocks for name in block}
    return blocks, Budget(shapes, sparsity, {}, pattern)


def _measured(rule: str, blocks: Blocks, budget: Budget) -> dict[str, Summary]:
    measure = ALLOCATIONS.get(rule).measure
    return {n: s for block in blocks for n, s in measure(block, budget).items()} if measure else {}


def _divided(rule: str, blocks: Blocks, budget: Budget) -> dict[str, float]:
    return ALLOCATIONS.get(rule).divide(_measured(rule, blocks, budget), budget)


def _zeros(budget: Budget, sparsities: dict[str, float]) -> int:
    return sum(size - kept_count(size, sparsities[name]) for name, size in budget.sizes.items())


@pytest.mark.parametrize("rule", NAMES)
@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.5, 0.7, 0.93])
def test_every_rule_meets_the_budget(rule: str, sparsity: float) -> None:
    blocks, budget = _blocks(Unstructured(), sparsity)
    found = _divided(rule, blocks, budget)
    assert list(found) == list(budget.shapes)
    if rule == "uniform":  # every tensor rounds for itself
        assert set(found.values()) == {sparsity}
    else:
        assert _zeros(budget, found) == budget.zeros
    assert all(0 <= s < 1 for s in found.values())
    assert found == _divided(rule, blocks, budget)


@pytest.mark.parametrize("rule", NAMES)
def test_every_rule_keeps_the_bounds(rule: str) -> None:
    blocks, budget = _blocks(Unstructured(), 0.6)
    bounds = {name: (0.1, 0.3) if name.endswith("q") else (0.5, 0.95) for name in budget.shapes}
    bounded = replace(budget, bounds=bounds)
    found = _divided(rule, blocks, bounded)
    assert _zeros(bounded, found) == bounded.zeros
    for name, (low, high) in bounds.items():
        assert low - 1e-6 <= found[name] <= high + 1e-6
    with pytest.raises(CrepeError, match="out of reach"):
        _divided(rule, blocks, replace(budget, bounds=dict.fromkeys(budget.shapes, (0.1, 0.3))))


@pytest.mark.parametrize("rule", NAMES)
@pytest.mark.parametrize("sparsity", [0.0, 0.25, 0.41, 0.5])
def test_every_rule_snaps_to_a_mix(rule: str, sparsity: float) -> None:
    blocks, budget = _blocks(parse_pattern("dense+2:4+4:8"), sparsity)
    found = _divided(rule, blocks, budget)
    assert set(found.values()) <= {0.0, 0.5}
    assert budget.zeros <= _zeros(budget, found) < budget.zeros + max(budget.sizes.values())
    assert found == _divided(rule, blocks, budget)
    with pytest.raises(CrepeError, match=r"sparsity 0\.6 is out of reach.*dense\+2:4\+4:8 allow 0 to 0\.5"):
        _divided(rule, blocks, replace(budget, sparsity=0.6))


@pytest.mark.parametrize("rule", NAMES)
def test_every_rule_leaves_a_fixed_pattern_alone(rule: str) -> None:
    blocks, budget = _blocks(NofM(2, 4), 0.5)
    assert set(_divided(rule, blocks, budget).values()) == {0.5}


@pytest.mark.parametrize("rule", [name for name in NAMES if name != "uniform"])
def test_rules_see_a_difference(rule: str) -> None:
    blocks, budget = _blocks(Unstructured(), 0.5)
    assert max(_divided(rule, blocks, budget).values()) - min(_divided(rule, blocks, budget).values()) > 0.05


def test_uniform_is_the_target_everywhere() -> None:
    blocks, budget = _blocks(Unstructured(), 0.5)
    assert set(_divided("uniform", blocks, budget).values()) == {0.5}


def test_uniform_spreads_a_mix_over_the_depth() -> None:
    budget = Budget({f"{i}": (8, 8) for i in range(40)}, 0.25, {}, parse_pattern("dense+2:4"))
    found = list(ALLOCATIONS.get("uniform").divide({}, budget).values())
    assert sum(found) == 10 * 2 * 0.5
    assert [sum(found[i : i + 10]) for i in range(0, 40, 10)] == pytest.approx([2.5] * 4, abs=0.5)


def test_owl_against_the_authors_formula() -> None:
    blocks, budget = _blocks(Unstructured(), 0.6)
    shares = []
    for block in blocks:
        scores = torch.cat([matrix.score.double().flatten() for matrix in block.values()])
        shares.append(float((scores > OUTLIER * scores.mean()).double().mean()))
    ratios = torch.tensor(shares, dtype=torch.float64)
    scaled = (ratios - ratios.min()) / (ratios.max() - ratios.min()) * LAMBDA * 2
    wanted = 1 - (scaled - scaled.mean() + (1 - 0.6))
    found = _divided("owl", blocks, budget)
    for index, block in enumerate(blocks):
        for name in block:
            assert found[name] == pytest.approx(float(wanted[index]), abs=1 / budget.sizes[name])


def _naive_exponent(weight: torch.Tensor) -> float:
    wide = weight.double() if weight.shape[0] <= weight.shape[1] else weight.double().T
    eigenvalues = sorted(torch.linalg.eigvalsh(wide @ wide.T).tolist())
    n = len(eigenvalues)
    k = n // 2
    return 1 + k / sum(math.log(eigenvalues[n - i] / eigenvalues[n - k - 1]) for i in range(1, k + 1))


def test_exponent_against_eigenvalues() -> None:
    for seed, shape in enumerate([(8, 16), (9, 16), (16, 40), (2, 3)]):
        weight = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        assert tail_exponent(weight) == pytest.approx(_naive_exponent(weight), rel=1e-4)
        assert tail_exponent(weight.T.contiguous()) == pytest.approx(_naive_exponent(weight), rel=1e-4)


@pytest.mark.parametrize("weight", [torch.zeros(4, 4), torch.eye(4), torch.ones(4, 4), torch.ones(1, 4)])
def test_spectra_without_a_tail_have_no_exponent(weight: torch.Tensor) -> None:
    assert tail_exponent(weight) is None


def test_alpha_against_the_authors_formula() -> None:
    blocks, budget = _blocks(Unstructured(), 0.6)
    exponents = [sum(_naive_exponent(matrix.dense) for matrix in block.values()) / len(block) for block in blocks]
    low, high = min(exponents), max(exponents)
    ratios = [(a - low) / (high - low) * 2 * EPSILON + 1 - EPSILON for a in exponents]
    size = sum(out * inputs for out, inputs in SHAPES.values())
    eta = 0.6 * BLOCKS * size / sum(size * ratio for ratio in ratios)
    found = _divided("alpha", blocks, budget)
    for index, block in enumerate(blocks):
        for name in block:
            assert found[name] == pytest.approx(eta * ratios[index], abs=2 / budget.sizes[name])


def test_tensors_without_a_summary_get_the_mean() -> None:
    budget = Budget(dict.fromkeys("abc", (10, 10)), 0.5, {}, Unstructured())
    found = ALLOCATIONS.get("alpha").divide({"a": (2.0,), "b": (4.0,), "c": ()}, budget)
    assert found["a"] < found["c"] == 0.5 < found["b"]
    assert set(ALLOCATIONS.get("owl").divide({}, budget).values()) == {0.5}


def test_measured_errors_against_a_naive_reference() -> None:
    blocks, budget = _blocks(Unstructured(), 0.6)
    measured = _measured("error", blocks, budget)
    for name, matrix in blocks[1].items():
        low, *inner, high = grids([name], budget)[name]
        assert (low, high) == pytest.approx((0.6 - SPREAD, 0.6 + SPREAD)) and len(inner) == 5
        for sparsity, value in zip((low, *inner, high), measured[name], strict=True):
            kept = Unstructured().select(matrix.score, sparsity)
            pruned = matrix.dense.double() * kept
            assert value == pytest.approx(output_error(matrix.dense.double(), pruned, matrix.gram.double()), rel=1e-4)


def test_error_loses_less_than_uniform_and_stays_near() -> None:
    blocks, budget = _blocks(Unstructured(), 0.6)
    found = _divided("error", blocks, budget)
    matrices = {name: matrix for block in blocks for name, matrix in block.items()}

    def lost(sparsities: dict[str, float]) -> float:
        masks = {n: Unstructured().select(m.score, sparsities[n]) for n, m in matrices.items()}
        return sum(output_error(m.dense, m.dense * masks[n], m.gram) for n, m in matrices.items())

    assert lost(found) < lost(dict.fromkeys(found, 0.6))
    assert all(abs(s - 0.6) <= SPREAD + 1e-6 for s in found.values())


def test_experts_count_by_their_tokens() -> None:
    budget = Budget({"often": (8, 16), "seldom": (8, 16)}, 0.5, {}, Unstructured())
    often = _matrix((8, 16), 1, Unstructured(), 0.5)
    seldom = replace(often, statistics={**often.statistics, "tokens": torch.tensor(16)})
    measured = _measured("error", [{"often": often, "seldom": seldom}], budget)
    assert measured["seldom"] == pytest.approx([error / 4 for error in measured["often"]])
    found = ALLOCATIONS.get("error").divide(measured, budget)
    assert found["often"] < found["seldom"]
