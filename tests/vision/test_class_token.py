"""Tokens before the patches, the rows of the class token, and the statistic that toast asks for."""

from __future__ import annotations

import torch

from crepe.vision.attention import attention_weights, find_attentions
from crepe.vision.class_token import ClassRows, prefix_tokens
from crepe.vision.graph import Graph
from crepe.vision.statistics import tokens
from crepe.vision.token_channels import image_importance
from crepe.vision.token_gate import class_attention
from image_families import FusedTransformer, hugging_face

VALUES = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))
CPU = torch.device("cpu")


def test_how_many_tokens_come_before_the_patches() -> None:
    models = [hugging_face("vit"), hugging_face("deit"), hugging_face("swin"), FusedTransformer()]
    assert [prefix_tokens(model) for model in models] == [1, 2, 0, 0]


def test_rows_are_those_of_the_attention_that_ran_last_and_only_for_its_tokens() -> None:
    model, seen = hugging_face("vit"), {}
    model.vit.layers[1].attention.register_forward_pre_hook(lambda module, inputs: seen.update(tokens=inputs[0]))
    rows = ClassRows(model)
    assert rows.row_for(VALUES) is None
    with torch.no_grad():
        model(VALUES)
        expected = class_attention(seen["tokens"], attention_weights(model, find_attentions(model)[1]))
    assert torch.equal(rows.row_for(seen["tokens"]), expected)
    assert rows.row_for(seen["tokens"][:, 1:]) is None


def test_the_statistic_is_the_mean_importance_over_images_whatever_the_batches() -> None:
    model, seen = hugging_face("vit"), {}
    block = model.vit.layers[1]
    handles = [
        block.attention.register_forward_pre_hook(lambda module, inputs: seen.update(tokens=inputs[0])),
        block.mlp.fc2.register_forward_pre_hook(lambda module, inputs: seen.update(hidden=inputs[0])),
    ]
    with torch.no_grad():
        model(VALUES)
    for handle in handles:
        handle.remove()
    row = class_attention(seen["tokens"], attention_weights(model, find_attentions(model)[1]))
    groups = [group for group in Graph(model, VALUES).groups if group.obstacle is None]
    name = "vit.layers.1.mlp.fc1"
    for size in (6, 1, 4):
        found = tokens(model, groups, [(part, part) for part in VALUES.split(size)], CPU)[name]
        torch.testing.assert_close(found, image_importance(seen["hidden"], row).mean(0).detach())
    assert not model.vit.layers[1].attention._forward_pre_hooks and not block.mlp.fc2._forward_pre_hooks


def test_without_a_class_token_all_tokens_count_the_same() -> None:
    torch.manual_seed(0)
    model, seen = FusedTransformer().eval(), {}
    handle = model.blocks[2].fc2.register_forward_pre_hook(lambda module, inputs: seen.update(hidden=inputs[0]))
    with torch.no_grad():
        model(VALUES)
    handle.remove()
    groups = [group for group in Graph(model, VALUES).groups if group.obstacle is None]
    found = tokens(model, groups, [(VALUES, VALUES)], CPU)["blocks.2.fc1"]
    torch.testing.assert_close(found, seen["hidden"].abs().mean((0, 1)))
