"""The run-time form put into a model: nothing at ratio 0, gone with its handles, and only one form needs no company."""

from __future__ import annotations

import torch

from crepe.vision.attention import attention_weights, find_attentions
from crepe.vision.load import logits_of
from crepe.vision.run_time import gate_hidden
from crepe.vision.token_channels import image_importance, kept_channels, top_channels
from crepe.vision.token_gate import class_attention
from image_families import hugging_face

EXAMPLE = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def _logits(model: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return logits_of(model(images))


def test_ratio_nothing_is_the_dense_model_and_handles_take_it_out() -> None:
    model = hugging_face("vit")
    dense = _logits(model, EXAMPLE)
    for ratio in (0.0, 0.5):
        handles = gate_hidden(model, EXAMPLE[:1], ratio)
        assert torch.equal(_logits(model, EXAMPLE), dense) == (ratio == 0)
        for handle in handles:
            handle.remove()
    assert torch.equal(_logits(model, EXAMPLE), dense)


def test_an_image_gets_the_same_alone_only_in_the_form_per_image() -> None:
    for per_image in (True, False):
        model = hugging_face("vit")
        gate_hidden(model, EXAMPLE[:1], 0.6, per_image=per_image)
        alone = torch.cat([_logits(model, EXAMPLE[i : i + 1]) for i in range(6)])
        assert torch.allclose(_logits(model, EXAMPLE), alone, atol=1e-5) == per_image


def test_the_row_of_the_class_token_decides_with_the_hidden_channels() -> None:
    model, seen = hugging_face("vit"), {}
    block = model.vit.layers[1]
    block.attention.register_forward_pre_hook(lambda module, inputs: seen.update(tokens=inputs[0]))
    block.mlp.fc2.register_forward_pre_hook(lambda module, inputs: seen.update(hidden=inputs[0]))
    gate_hidden(model, EXAMPLE[:1], 0.5, per_image=True)
    block.mlp.fc2.register_forward_pre_hook(lambda module, inputs: seen.update(gated=inputs[0]))
    _logits(model, EXAMPLE)
    with torch.no_grad():
        row = class_attention(seen["tokens"], attention_weights(model, find_attentions(model)[1]))
    kept = top_channels(image_importance(seen["hidden"], row), kept_channels(64, 0.5))
    mask = torch.zeros(6, 64, dtype=torch.bool).scatter_(1, kept, True)
    assert torch.equal(seen["gated"] != 0, mask[:, None].expand_as(seen["hidden"]) & (seen["hidden"] != 0))
