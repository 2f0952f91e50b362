"""ToaSt's feed-forward selection at run time, put into a model as it is (see `crepe.vision.token_gate`).

For comparison with the static form: the layers keep their shapes, so nothing is saved and nothing gets smaller on disk.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from crepe.vision.attention import Attention, attention_weights, find_attentions
from crepe.vision.graph import Graph
from crepe.vision.layers import kind_of
from crepe.vision.token_gate import TokenGate, class_attention


class _ClassRow:
    """What the class token pays to each token in the attention that ran last. Forward pre-hook of attentions."""

    def __init__(self, model: nn.Module, attention: Attention, latest: dict[str, Tensor]) -> None:
        self._model, self._attention, self._latest = model, attention, latest

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        tokens = inputs[0] if inputs else next(value for value in named.values() if isinstance(value, Tensor))
        with torch.no_grad():
            self._latest["row"] = class_attention(tokens, attention_weights(self._model, self._attention))


def gate_hidden(
    model: nn.Module, example: Tensor, ratio: float, *, per_image: bool = False, prefix: int = 1, seed: int = 0
) -> list[RemovableHandle]:
    """Zero `ratio` of the hidden channels where the second layer of each feed-forward part reads them, in all parts but
    the first. Removing the handles makes the model dense again.

    per_image False: one choice for each batch, as published, so THE RESULT FOR AN IMAGE DEPENDS ON ITS BATCH; True: one
    for each image. prefix: tokens before the patches, the class token first.
    """
    groups = [g for g in Graph(model, example).groups if g.obstacle is None and g.users]
    readers = [g.users[0].name for g in groups if kind_of(model.get_submodule(g.name)) == "linear"]
    latest: dict[str, Tensor] = {}
    handles = [
        model.get_submodule(found.name).register_forward_pre_hook(_ClassRow(model, found, latest), with_kwargs=True)
        for found in find_attentions(model)
    ]
    for index, name in enumerate(readers[1:]):
        gate = TokenGate(ratio, prefix, seed=seed + index, per_image=per_image)

        def select(module: nn.Module, inputs: tuple[Tensor, ...], gate: TokenGate = gate) -> tuple[Tensor, ...]:
            return (gate(inputs[0], latest.get("row")), *inputs[1:])

        handles.append(model.get_submodule(name).register_forward_pre_hook(select))
    return handles
