"""Proxies: naive references, and a conformance test that every registered one passes."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from crepe.criteria import Coefficients
from crepe.errors import UsageError
from crepe.search.proxies import PROXIES, get_proxy
from crepe.search.proxies.gini import gini
from crepe.search.proxies.recon import row_errors
from crepe.search.sketches import SKETCH, sketch, sketch_with_gradients
from families import tiny_subject

NAMES = PROXIES.names()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("pattern", ["unstructured", "2:4"])
@pytest.mark.parametrize("model_type", ["llama", "gpt2", "qwen3_moe", "mamba"])
def test_every_proxy_is_a_positive_number_that_repeats(name: str, pattern: str, model_type: str) -> None:
    values = []
    for _ in range(2):
        found = tiny_subject(pattern, model_type)
        before = {key: p.clone() for key, p in found.model.named_parameters()}
        score = get_proxy(name).prepare(found)
        values.append([score(Coefficients(activation=a)) for a in (0.5, 1.5)])
        assert all(torch.equal(before[key], p) for key, p in found.model.named_parameters())
        assert all(p.requires_grad and p.grad is None for p in found.model.parameters())  # as they were
    assert values[0] == values[1] and all(0 < value < math.inf for value in values[0])
    assert values[0][0] != values[0][1] or pattern == "2:4"
    assert get_proxy(name).cost


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "mamba", "qwen3_moe", "gpt_oss"])
def test_gradients_reach_every_matrix(model_type: str) -> None:
    found = tiny_subject(model_type=model_type)
    rows = torch.randint(3, 100, (8, 32))
    energies = sketch_with_gradients(found.model, found.plan.views, rows, 0).energies
    silent = [name for name, energy in energies.items() if "[" not in name and not energy.sum() > 0]
    assert not silent
    experts = [energy for name, energy in energies.items() if "[" in name]
    assert not experts or sum(bool(energy.sum() > 0) for energy in experts) > len(experts) / 2


@pytest.mark.parametrize("name", sorted({"recon", "block", "kl", "fisher"} & set(NAMES)))
def test_errors_grow_with_sparsity(name: str) -> None:
    found = [get_proxy(name).prepare(tiny_subject(sparsity=s))(Coefficients()) for s in (0.2, 0.5, 0.8)]
    assert found == sorted(found) and found[0] < found[2]


def test_gini_against_the_definition() -> None:
    torch.manual_seed(0)
    values = torch.rand(4, 50) ** 2
    pairs = (values[:, :, None] - values[:, None, :]).abs().double().sum((1, 2))
    naive = pairs / (2 * 50 * values.double().sum(1))
    torch.testing.assert_close(gini(values), naive, rtol=1e-6, atol=0)
    assert gini(torch.ones(1, 9)).item() == pytest.approx(0) and gini(torch.eye(9)[:1]).item() == pytest.approx(8 / 9)


def test_row_errors_against_the_gram_matrix() -> None:
    torch.manual_seed(0)
    weight, mask, inputs = torch.randn(2, 5, 8), torch.rand(2, 5, 8) < 0.5, torch.randn(2, 30, 8)
    gram = inputs.transpose(1, 2) @ inputs
    lost = weight * ~mask
    naive = torch.einsum("lri,lij,lrj->lr", lost, gram, lost)
    torch.testing.assert_close(row_errors(weight, mask, inputs), naive, rtol=1e-4, atol=1e-5)


def test_sketches_estimate_the_gram_matrix() -> None:
    found = tiny_subject()
    view = next(v for v in found.plan.views if v.name.endswith("down_proj.weight"))
    rows = torch.randint(3, 100, (4, 16))
    inputs: list[Tensor] = []
    hook = view.owner.register_forward_hook(lambda module, args, output: inputs.append(args[0][0]))
    sketches = [sketch(found.model, found.plan.views, rows, seed).sketches[view.name] for seed in range(12)]
    hook.remove()
    exact = torch.cat(inputs[:4]).T @ torch.cat(inputs[:4])
    mean = torch.stack([s.T @ s for s in sketches]).mean(0)
    assert sketches[0].shape == (SKETCH, view.shape[1])
    assert float((mean - exact).norm() / exact.norm()) < 0.1


def test_gradient_energies_against_autograd() -> None:
    """With one token per row the energy of an output is the square of its gradient."""
    found = tiny_subject()
    view = next(v for v in found.plan.views if v.name.endswith("v_proj.weight"))
    row = torch.tensor([[5, 9, 20]])
    energies = sketch_with_gradients(found.model, found.plan.views, row, 3).energies[view.name]
    seen: list[Tensor] = []

    def keep(module: torch.nn.Module, args: object, output: Tensor) -> None:
        output.requires_grad_().retain_grad()
        seen.append(output)

    hook = view.owner.register_forward_hook(keep)
    with torch.enable_grad():
        logits = found.model(input_ids=row, use_cache=False).logits.float().log_softmax(-1).flatten(0, -2)
        drawn = torch.multinomial(logits.detach().exp(), 1, generator=torch.Generator().manual_seed(3))
        (-logits.gather(1, drawn).sum()).backward()
    hook.remove()
    assert seen[0].grad is not None
    torch.testing.assert_close(energies, seen[0].grad[0].double().square().sum(0), rtol=1e-4, atol=1e-12)


def test_fisher_estimates_a_small_divergence() -> None:
    """Where little is pruned, the second-order estimate is the divergence itself, up to its simplifications."""
    values = {}
    for name in ("fisher", "kl"):
        found = tiny_subject(sparsity=0.15)
        found.entries = 10**9
        found.held = found.rows
        values[name] = get_proxy(name).prepare(found)(Coefficients())
    assert 0.6 < values["fisher"] / values["kl"] < 1.3


def test_sampled_rows_stand_for_all_in_fisher() -> None:
    """With the fewest rows, over several samples, the mean is what all rows give."""

    def value(entries: int, seed: int) -> float:
        found = tiny_subject(sparsity=0.5)
        found.entries, found.seed = entries, seed
        drawn = sum(stack.rows.numel() for stack in found.sample.stacks)
        assert (drawn < sum(view.shape[0] for view in found.plan.views)) == (entries == 1)
        return get_proxy("fisher").prepare(found)(Coefficients())

    sampled = [value(1, seed) for seed in range(6)]
    assert sum(sampled) / len(sampled) == pytest.approx(value(10**9, 0), rel=0.15) and len(set(sampled)) > 1


def test_a_matrix_of_zeros_says_nothing_to_gini() -> None:
    found = tiny_subject()
    found.plan.views[-1].matrix().zero_()
    assert 0 < get_proxy("gini").prepare(found)(Coefficients()) < 1


def test_several_proxies_joined() -> None:
    found = tiny_subject()
    parts = [get_proxy(name).prepare(found)(Coefficients()) for name in ("gini", "recon")]
    assert get_proxy("gini+recon").prepare(found)(Coefficients()) == pytest.approx(math.sqrt(parts[0] * parts[1]))
    with pytest.raises(UsageError, match="did you mean 'gini'"):
        get_proxy("recon+ginny")
