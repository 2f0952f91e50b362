"""The methods of the four papers as the graph calls them: how many stay, which layers they want, balance."""

from __future__ import annotations

import pytest
import torch

from crepe.errors import CrepeError
from crepe.masks import parse_pattern
from crepe.vision.methods import METHODS, FilterPart, HeadPart, Heads, Layer, MaskPart


def _weight(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


CONV = Layer("conv", (_weight(16, 8, 3, 3),))
DEPTHWISE = Layer("depthwise", (_weight(80, 1, 3, 3),), "depthwise")
EXPAND = Layer("expand", (_weight(48, 16, 1, 1), _weight(48, 1, 3, 3)), "pointwise")
PROJECT = Layer("project", (_weight(16, 48, 1, 1), _weight(16, 96, 1, 1, seed=1)), "pointwise", tied=True)
GROUPED = Layer("grouped", (_weight(16, 8, 3, 3),), "grouped")
LINEAR = Layer("linear", (_weight(32, 16, 1, 1),), "linear", statistics={"tokens": torch.arange(32.0)})
LAYERS = (CONV, DEPTHWISE, EXPAND, PROJECT, GROUPED, LINEAR)


def _wanted(name: str, kind: type) -> list[str]:
    parts = [part for part in METHODS.get(name).parts if isinstance(part, kind)]
    return [layer.name for part in parts for layer in LAYERS if part.suits(layer)]


def test_which_layers_a_method_wants() -> None:
    assert _wanted("reprune", FilterPart) == ["conv", "expand", "project", "linear"]
    assert _wanted("deprune-bh", MaskPart) == ["depthwise"]
    assert _wanted("deprune-bh", FilterPart) == ["project"]
    assert _wanted("bcbp", MaskPart) == ["conv", "expand", "project", "linear"]
    assert _wanted("toast", FilterPart) == ["linear"]


@pytest.mark.parametrize("name", ["reprune", "reprune-normalised", "deprune-b", "toast"])
@pytest.mark.parametrize("keep", [1, 7, 15])
def test_a_filter_part_keeps_exactly_as_many_as_asked_for(name: str, keep: int) -> None:
    for part in METHODS.get(name).parts:
        for layer in LAYERS if isinstance(part, FilterPart) else ():
            if part.suits(layer):
                kept = part.select(layer, keep)
                assert kept.tolist() == sorted(set(kept.tolist())) and len(kept) == keep
                assert int(kept[0]) >= 0 and int(kept[-1]) < layer.width
                assert torch.equal(kept, part.select(layer, keep))


@pytest.mark.parametrize("name", ["deprune-b", "deprune-bh", "bcbp", "bcbp-vector"])
@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.8])
def test_a_mask_part_obeys_the_pattern_that_it_names(name: str, sparsity: float) -> None:
    (part,) = [part for part in METHODS.get(name).parts if isinstance(part, MaskPart)]
    layers = {layer.name: layer for layer in LAYERS if part.suits(layer)}
    masks = part.select(layers, sparsity)
    assert set(masks) == set(layers)
    pattern = parse_pattern(part.pattern)
    for layer_name, mask in masks.items():
        assert mask.dtype == torch.bool and mask.shape == layers[layer_name].weight.shape
        assert pattern.violations(mask.flatten(1)) == 0
    removed = sum(int((~mask).sum()) for mask in masks.values()) / sum(mask.numel() for mask in masks.values())
    # Rounding to tiles of 32 columns and to multiples of 8 moves layers as small as these by several percent.
    assert removed == pytest.approx(sparsity, abs=0.12)


def test_aligned_groups_keep_multiples_of_a_tile() -> None:
    (part,) = [part for part in METHODS.get("deprune-bh").parts if isinstance(part, MaskPart)]
    layers = {str(i): Layer(str(i), (_weight(64, 1, 3, 3, seed=i),), "depthwise") for i in range(4)}
    counts = [int(group.sum()) for mask in part.select(layers, 0.6).values() for group in mask.split(32)]
    assert sorted(counts) == [96] * 4 + [128] * 4


def test_reprune_prefers_filters_that_are_not_alike() -> None:
    weight = _weight(6, 4, 3, 3)
    weight[3:] = weight[:3] * 1.001
    (part,) = METHODS.get("reprune").parts
    assert {int(i) % 3 for i in part.select(Layer("twins", (weight,)), 3)} == {0, 1, 2}


def test_toast_keeps_whole_multiples_in_every_head_and_the_first_block_dense() -> None:
    (heads,) = [part for part in METHODS.get("toast").parts if isinstance(part, HeadPart)]
    matrices = [_weight(3, 64, 48, seed=i) for i in range(4)]
    assert heads.select(Heads("first", 0, *matrices), 0.9) is None
    choice = heads.select(Heads("second", 1, *matrices), 0.9)
    assert choice is not None and choice.query_key.shape == choice.value_output.shape == (3, 8)
    assert bool((choice.query_key.diff(dim=1) > 0).all())


def test_the_norm_of_a_dimension_is_another_score_than_its_distance_from_the_median() -> None:
    matrices = [_weight(2, 16, 12, seed=i) + 3 for i in range(4)]
    matrices[0][:, 5:] *= 0.2  # quiet rows, close to one another
    choices = {}
    for name in ("toast", "toast-l1", "toast-l2"):
        (heads,) = [part for part in METHODS.get(name).parts if isinstance(part, HeadPart)]
        choices[name] = heads.select(Heads("second", 1, *matrices), 0.5).query_key
    norm = torch.cat(matrices[:2], 2).square().sum(2)
    assert torch.equal(choices["toast-l2"], norm.argsort(dim=1, descending=True)[:, :8].sort(1).values)
    assert not torch.equal(choices["toast"], choices["toast-l2"])


@pytest.mark.parametrize("name", ["deprune", "deprune-b", "deprune-bh"])
def test_too_large_a_share_of_taps_is_refused_by_the_number_that_was_given(name: str) -> None:
    """Filling columns up to whole tiles would hide it, and a share in whole taps is another number."""
    (part,) = [part for part in METHODS.get(name).parts if isinstance(part, MaskPart)]
    with pytest.raises(CrepeError, match=r"sparsity 0\.95 leaves less than one of the 9 taps of .* depthwise"):
        part.select({"depthwise": DEPTHWISE}, 0.95)
