"""Zeroed channels and removed channels compute the same, for every structure."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from crepe.vision.cost import Shrinking, macs, parameters
from crepe.vision.cut import channel_masks, cut, distance, faithful, hold
from crepe.vision.graph import Graph
from crepe.vision.layers import layer_of
from crepe.vision.load import logits_of
from crepe.vision.methods.fpgm import select
from crepe.vision.nets.cifar_resnet import CifarResNet
from crepe.vision.shapes import changed, resize, shapes_of
from image_families import HUGGING_FACE, PLAIN, Shifted, hugging_face, lively, plain

EXAMPLE = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def _cases() -> list[str]:
    return [*HUGGING_FACE, *(kind.__name__ for kind in PLAIN), "cifar"]


def _model(name: str) -> nn.Module:
    if name == "cifar":
        torch.manual_seed(0)
        return lively(CifarResNet(8))
    return hugging_face(name) if name in HUGGING_FACE else plain({kind.__name__: kind for kind in PLAIN}[name])


@pytest.mark.parametrize("name", _cases())
def test_masked_and_cut_agree_and_the_cut_is_rebuilt_from_its_shapes(name: str) -> None:
    model = _model(name)
    dense, before, graph = copy.deepcopy(model), shapes_of(model), Graph(model, EXAMPLE)
    groups = [group for group in graph.groups if group.obstacle is None]  # tied ones as well
    kept = {group.name: select(layer_of(model, group), group.units // 2) for group in groups}
    sound = faithful(model, groups, kept, EXAMPLE)
    assert sound
    cost = Shrinking(model, sound, EXAMPLE)
    masked = copy.deepcopy(model)
    hold(masked, channel_masks(model, sound, kept))
    cut(graph, sound, kept)
    with torch.no_grad():
        found = logits_of(model(EXAMPLE))
        assert distance(logits_of(masked(EXAMPLE)), found) <= 1e-5
    assert parameters(model) < parameters(dense)
    assert macs(model, EXAMPLE) == cost.after({group.name: group.units // 2 for group in sound}) < cost.dense
    shapes = changed(before, shapes_of(model))
    resize(dense, shapes)
    dense.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert torch.equal(logits_of(dense(EXAMPLE)), found)


def test_a_silenced_channel_that_still_speaks_is_left_alone() -> None:
    model = plain(Shifted)
    groups = [group for group in Graph(model, EXAMPLE).groups if group.obstacle is None]
    kept = {group.name: torch.arange(4) for group in groups}
    assert [group.name for group in faithful(model, groups, kept, EXAMPLE)] == ["second"]


def test_ties_that_are_laid_out_with_an_offset_are_left_alone() -> None:
    model = _model("cifar")
    groups = Graph(model, EXAMPLE).groups
    kept = {group.name: torch.arange(group.units // 2) for group in groups}
    stem = next(group for group in groups if group.tied)
    assert faithful(model, [stem], kept, EXAMPLE) == []


def test_masked_weights_are_positive_zeros() -> None:
    model = _model("cifar")
    groups = [group for group in Graph(model, EXAMPLE).groups if not group.tied and group.obstacle is None]
    masks = channel_masks(model, groups, {group.name: torch.arange(2) for group in groups})
    hold(model, masks)
    weight = model.layer1[0].conv1.weight
    assert not torch.signbit(weight[2:]).any() and not weight[2:].any() and weight[:2].all()
    assert {"layer1.0.bn1.bias", "layer1.0.bn1.weight", "layer1.0.conv1.weight"} <= masks.keys()


def test_distance_is_relative_only_for_large_values() -> None:
    assert distance(torch.tensor([100.0]), torch.tensor([101.0])) == pytest.approx(0.01)
    assert distance(torch.tensor([0.1]), torch.tensor([0.2])) == pytest.approx(0.1)
    assert distance(torch.zeros(2), torch.zeros(3)) == float("inf")
