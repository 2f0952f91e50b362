"""The tokens before the patches, and what the first of them pays to each token while a model runs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from crepe.vision.attention import Attention, attention_weights, find_attentions
from crepe.vision.token_gate import class_attention

# Names of parameters (1, count, width) that are put before the patches, in all libraries that crepe reads.
_TOKENS = ("cls_token", "class_token", "distillation_token", "dist_token", "register_tokens", "reg_token")


def prefix_tokens(model: nn.Module) -> int:
    """How many tokens come before the patches; 0 without a class token, when patches are averaged instead."""
    found = {name.rsplit(".")[-1]: value for name, value in model.named_parameters()}
    tokens = {name: found[name] for name in _TOKENS if name in found and found[name].dim() == 3}
    return sum(value.shape[1] for value in tokens.values()) if tokens.keys() & set(_TOKENS[:2]) else 0


class ClassRows:
    """Follows the attentions of a model. `latest`: (batch, tokens), the row of the class token in the attention that
    ran last, averaged over heads; None before the first. `handles` end it."""

    def __init__(self, model: nn.Module) -> None:
        self.latest: Tensor | None = None
        self.handles: list[RemovableHandle] = [self._follow(model, found) for found in find_attentions(model)]

    def row_for(self, tokens: Tensor) -> Tensor | None:
        """The latest row, where it belongs to tokens of this shape (batch, tokens, channels)."""
        return self.latest if self.latest is not None and self.latest.shape == tokens.shape[:2] else None

    def _follow(self, model: nn.Module, attention: Attention) -> RemovableHandle:
        def remember(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
            tokens = inputs[0] if inputs else next(value for value in named.values() if isinstance(value, Tensor))
            with torch.no_grad():
                self.latest = class_attention(tokens.float(), attention_weights(model, attention))

        return model.get_submodule(attention.name).register_forward_pre_hook(remember, with_kwargs=True)
