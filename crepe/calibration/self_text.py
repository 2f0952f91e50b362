"""Text that the model itself writes: calibration without data and without a network."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from crepe.calibration.tokens import bos_tokens
from crepe.errors import CrepeError
from crepe.models.draws import seeded
from crepe.models.wide import wide_products
from crepe.progress import bar, bars_wanted

_BATCH = 64
# Stands for the user's words when the chat template is asked what it puts before them.
_MARK = "\x00"


def self_rows(model: Any, tokenizer: Any, samples: int, seqlen: int, seed: int) -> Tensor:
    """`samples` rows of `seqlen` tokens sampled from the model, (samples, seqlen) int64.

    Every row starts as a text of the model starts (with the opening of the chat template where there is one, so
    that a chat model writes both the question and the answer) and is sampled at temperature 1 until it is full.
    The seed decides the rows; the batch size is fixed, since sampling depends on it.

    Raises:
        CrepeError: the opening alone fills a row.
    """
    start = _opening(tokenizer)
    if seqlen <= len(start):
        raise CrepeError(f"a text of the model opens with {len(start)} tokens, seqlen {seqlen} leaves none to write")
    logging.getLogger("crepe").info("the model writes %d rows of %d tokens itself", samples, seqlen)
    rows, batches = [], range(0, samples, _BATCH)
    with bar("writing", len(batches) * (seqlen - len(start) + 1)) as advance:  # the opening is a step too
        for first in batches:
            count = min(_BATCH, samples - first)
            rows.append(_sample(model, torch.tensor(start).expand(count, -1), seqlen, seed + first, advance))
    return torch.cat(rows)


def cache_bytes(model: Any, samples: int, seqlen: int) -> int:
    """What the cache of the rows takes at most when they are full: what it holds of one and of two tokens, drawn on
    (sliding windows end earlier). The model may be on the meta device; one that does not run there, or keeps its state
    elsewhere, is judged by its config."""
    rows = min(_BATCH, samples)
    try:
        one, two = _held(model, 1), _held(model, 2)
    except Exception:
        one = two = 0
    return rows * (one + (seqlen - 1) * (two - one)) if one else rows * seqlen * _token_bytes(model)


def _token_bytes(model: Any) -> int:
    """Keys and values of one token in all layers, by the config."""
    config = model.config.get_text_config()
    width, heads = getattr(config, "hidden_size", 0), getattr(config, "num_attention_heads", None)
    if heads:
        of_one = getattr(config, "head_dim", None) or width // heads
        width = of_one * (getattr(config, "num_key_value_heads", None) or heads)
    return int(2 * getattr(config, "num_hidden_layers", 0) * width * model.dtype.itemsize)


def _held(model: Any, tokens: int) -> int:
    """Bytes of the cache after so many tokens of one row."""
    row = torch.zeros(1, tokens, dtype=torch.int64, device=next(model.parameters()).device)
    with torch.no_grad():
        cache = getattr(model(row, use_cache=True), "past_key_values", None)
    kept = (t for layer in getattr(cache, "layers", ()) for t in vars(layer).values() if isinstance(t, Tensor))
    return sum(tensor.numel() * tensor.element_size() for tensor in kept)


def _opening(tokenizer: Any) -> list[int]:
    """The tokens that open a text, at least one."""
    if getattr(tokenizer, "chat_template", None):
        messages = [{"role": "user", "content": _MARK}]
        text = tokenizer.apply_chat_template(messages, tokenize=False)
        if _MARK in text:
            tokens: list[int] = tokenizer(text.split(_MARK)[0], add_special_tokens=False).input_ids
            if tokens:
                return tokens
    fallback = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    return bos_tokens(tokenizer) or [fallback if fallback is not None else 0]


class _Steps:
    """What `generate` tells of every step."""

    def __init__(self, advance: Callable[[], object]) -> None:
        self.advance = advance

    def put(self, tokens: Tensor) -> None:
        self.advance()

    def end(self) -> None:
        pass


def _sample(model: Any, start: Tensor, seqlen: int, seed: int, advance: Callable[[], object]) -> Tensor:
    """Continue `start` (rows, opening) to `seqlen` tokens; an end token does not end a row."""
    device = next(model.parameters()).device
    with seeded(seed, device), torch.no_grad(), _compact_head(model), wide_products(device):
        rows: Tensor = model.generate(
            start.to(device),
            attention_mask=torch.ones_like(start, device=device),
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            max_new_tokens=seqlen - start.shape[1],
            min_new_tokens=seqlen - start.shape[1],
            eos_token_id=None,
            pad_token_id=0,
            streamer=_Steps(advance) if bars_wanted() else None,  # to tell of a token, a GPU has to be waited for
        )
    return rows[:, :seqlen].cpu()


@contextmanager
def _compact_head(model: Any) -> Iterator[None]:
    """The last position of each row reaches the output embedding as a view with gaps, for which torch would copy the
    whole embedding once per row: gigabytes, and half of the time of a short text."""
    head = model.get_output_embeddings()
    hook = head and head.register_forward_pre_hook(lambda _, inputs: (inputs[0].contiguous(), *inputs[1:]))
    try:
        yield
    finally:
        if hook:
            hook.remove()
