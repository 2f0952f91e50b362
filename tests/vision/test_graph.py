"""What hangs together: found by structure, with a reason for everything that cannot be cut."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from crepe.errors import CrepeError
from crepe.vision.graph import Graph
from crepe.vision.nets.cifar_resnet import CifarResNet
from image_families import Excited, Flattened, Grouped, Joined, hugging_face, plain

EXAMPLE = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_of_a_basic_block_only_the_first_convolution_is_free() -> None:
    groups = {group.name: group for group in Graph(CifarResNet(14), EXAMPLE).groups}
    free = [name for name, group in groups.items() if not group.tied and group.obstacle is None]
    assert free == [f"layer{stage}.{block}.conv1" for stage in (1, 2, 3) for block in (0, 1)]
    assert groups["conv1"].tied and len(groups["conv1"].makers) == 7
    assert groups["linear"].obstacle == "nothing reads its channels: it makes the output of the model"


def test_depthwise_convolutions_follow_the_layer_that_feeds_them() -> None:
    groups = {group.name: group for group in Graph(plain(Excited), EXAMPLE).groups}
    hidden = groups["expand"]
    assert [member.name for member in hidden.makers] == ["expand", "excite"]
    assert [member.name for member in hidden.followers] == ["depthwise"]
    assert [member.name for member in hidden.users] == ["squeeze", "project"] and not hidden.tied


def test_concatenated_branches_keep_their_places_in_what_reads_them() -> None:
    groups = {group.name: group for group in Graph(plain(Joined), EXAMPLE).groups}
    (norm,), (user,) = groups["right"].norms, groups["right"].users
    assert norm.indices.flatten().tolist() == list(range(8, 14)) == user.indices.flatten().tolist()


def test_a_flattened_channel_is_many_inputs() -> None:
    groups = {group.name: group for group in Graph(plain(Flattened), EXAMPLE).groups}
    (user,) = groups["second"].users
    assert user.name == "hidden" and user.at(torch.tensor([1])).tolist() == list(range(16, 32))


def test_channels_before_and_behind_a_grouped_convolution_go_from_every_part() -> None:
    groups = {group.name: group for group in Graph(plain(Grouped), EXAMPLE).groups}
    assert groups["reduce"].folds == groups["grouped"].folds == 4
    assert groups["grouped"].units == 4
    assert groups["grouped"].channels(torch.tensor([1, 3])).tolist() == [1, 3, 5, 7, 9, 11, 13, 15]
    assert groups["grouped"].removed(torch.tensor([1, 3])).tolist() == [0, 2, 4, 6, 8, 10, 12, 14]


def test_a_grouped_convolution_of_single_channels_names_the_obstacle() -> None:
    class Multiplied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 8, 3, groups=4)
            self.head = nn.Linear(8, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.second(torch.relu(self.first(x))).mean((2, 3)))

    groups = {group.name: group for group in Graph(Multiplied(), EXAMPLE).groups}
    assert groups["first"].obstacle == "grouped convolutions (4 groups) leave nothing to cut"


def test_a_transformer_is_free_where_its_feed_forward_parts_are_hidden() -> None:
    groups = Graph(hugging_face("vit"), EXAMPLE).groups
    assert [g.name.rpartition(".")[2] for g in groups if g.obstacle is None] == ["fc1", "fc1"]
    reasons = " ".join(str(g.obstacle) for g in groups)
    assert "position_embeddings" in reasons and "attention" in reasons


def test_a_model_that_does_not_run_on_the_input_is_one_line() -> None:
    with pytest.raises(CrepeError, match=r"the graph of Linear cannot be traced for inputs of shape \(2, 3, 32, 32\)"):
        Graph(nn.Linear(5, 5), EXAMPLE)


def test_tracing_leaves_the_model_as_it_was() -> None:
    model = plain(Joined)
    model.left.weight.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    Graph(model, EXAMPLE)
    assert not model.left.weight.requires_grad and model.right.weight.requires_grad
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
