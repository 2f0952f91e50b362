"""The walk: changed blocks feed the next ones, failures surface, the model is left as it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from crepe.models.blocks import Block, find_blocks
from crepe.pipeline.walk import OutOfOrder, Walk, forward_tokens
from families import tiny_model

ROWS = torch.randint(3, 128, (4, 16), generator=torch.Generator().manual_seed(0))


def _inputs_of_last_block(model: Any, rows: torch.Tensor) -> torch.Tensor:
    caught: list[torch.Tensor] = []
    last = find_blocks(model)[-1].module
    handle = last.register_forward_pre_hook(
        lambda module, args, kwargs: caught.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
    )
    with torch.no_grad():
        forward_tokens(model, rows)
    handle.remove()
    return caught[0]


@pytest.mark.parametrize("model_type", ["llama", "gemma3_text", "gpt2", "bloom", "mamba", "gemma3n_text"])
def test_errors_propagate_through_changed_blocks(model_type: str) -> None:
    """Each block is run, changed, and run again before the next: as in the sequential pipeline."""
    model, changed = tiny_model(model_type), tiny_model(model_type)
    blocks = find_blocks(model)
    walk = Walk(model, blocks, list(ROWS.split(1)))
    with walk.started():
        for block, twin in zip(blocks[:-1], find_blocks(changed)[:-1], strict=True):
            for _ in walk.run(block):
                pass
            with torch.no_grad():
                for parameter in [*block.module.parameters(), *twin.module.parameters()]:
                    parameter.mul_(0.5)
            walk.advance(block)
        calls = [parent.call for parent in walk._streams[0]]
        found = [c.args[0] if c.args else c.kwargs["hidden_states"] for c in calls if c]
    for row, inputs in zip(ROWS.split(1), found, strict=True):
        torch.testing.assert_close(inputs, _inputs_of_last_block(changed, row), rtol=1e-4, atol=1e-5)


def test_the_model_is_left_as_it_was() -> None:
    model = tiny_model("llama")
    with torch.no_grad():
        before = forward_tokens(model, ROWS).logits
    walk = Walk(model, find_blocks(model), [ROWS])
    with walk.started():
        pass
    with torch.no_grad():
        assert torch.equal(forward_tokens(model, ROWS).logits, before)


def test_a_failing_forward_surfaces() -> None:
    model = tiny_model("llama")
    walk = Walk(model, find_blocks(model), [ROWS + 1000])
    with pytest.raises(IndexError), walk.started():
        pass


def test_blocks_out_of_order_are_noticed() -> None:
    model = tiny_model("llama")
    blocks = find_blocks(model)[::-1]
    walk = Walk(model, blocks, [ROWS])
    with pytest.raises(OutOfOrder), walk.started():
        walk.advance(blocks[0])


def test_the_whole_model_can_be_the_only_block() -> None:
    model = tiny_model("llama")
    walk = Walk(model, [Block("", model)], [ROWS])
    with walk.started():
        outputs = list(walk.run(walk.blocks[0]))
    with torch.no_grad():
        assert torch.equal(outputs[0].logits, forward_tokens(model, ROWS).logits)


def test_blocks_are_found_by_structure() -> None:
    names = {t: [b.name for b in find_blocks(tiny_model(t))] for t in ("llama", "gpt2", "mamba", "zamba2")}
    assert names["llama"] == ["model.layers.0", "model.layers.1", "model.layers.2"]
    assert names["gpt2"][0] == "transformer.h.0" and names["mamba"][0] == "backbone.layers.0"
    assert names["zamba2"] == []  # its blocks share parameters
