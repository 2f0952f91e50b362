"""Text that the model itself writes: calibration without data and without a network."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from crepe.calibration.tokens import bos_tokens
from crepe.errors import CrepeError

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
    rows = []
    for first in range(0, samples, _BATCH):
        count = min(_BATCH, samples - first)
        rows.append(_sample(model, torch.tensor(start).expand(count, -1), seqlen, seed + first))
    return torch.cat(rows)


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


def _sample(model: Any, start: Tensor, seqlen: int, seed: int) -> Tensor:
    """Continue `start` (rows, opening) to `seqlen` tokens; an end token does not end a row."""
    device = next(model.parameters()).device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), torch.no_grad():
        torch.manual_seed(seed)
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
        )
    return rows[:, :seqlen].cpu()
