"""From text to rows: full-length packed rows of tokens, chosen by seed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from crepe.calibration.text import Corpus, shuffled
from crepe.errors import CrepeError


def bos_tokens(tokenizer: Any) -> list[int]:
    """What the tokenizer itself puts before a text: [bos] for Llama and Gemma, nothing for SmolLM2 or Qwen."""
    plain = tokenizer("a", add_special_tokens=False).input_ids
    added: list[int] = tokenizer("a").input_ids
    start = added[: len(added) - len(plain)] if added[-len(plain) :] == plain else added[:1]
    return [token for token in start if token == tokenizer.bos_token_id]


def packed_rows(tokenizer: Any, corpus: Corpus, samples: int, seqlen: int, seed: int) -> Tensor:
    """`samples` full rows, (samples, seqlen) int64: shuffled documents one after the other, BOS first in each row.

    Raises:
        CrepeError: the text is too short; the message says how many rows it gives.
    """
    start = bos_tokens(tokenizer)
    length = seqlen - len(start)
    tokens = _tokens_of(tokenizer, shuffled(corpus, seed), samples * length)
    available = len(tokens) // length
    if available < samples:
        raise CrepeError(
            f"{corpus.name} gives {available} rows of {seqlen} tokens, {samples} are asked for: "
            "lower --samples or --seqlen, or give more text"
        )
    body = torch.tensor(tokens[: samples * length]).view(samples, length)
    return torch.cat([torch.tensor(start, dtype=torch.long).expand(samples, -1), body], dim=1)


def _tokens_of(tokenizer: Any, documents: Iterable[str], wanted: int) -> list[int]:
    separator = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    tokens: list[int] = []
    for document in documents:
        if len(tokens) >= wanted:
            break
        tokens += [*encode(tokenizer, document), *separator]
    return tokens


def encode(tokenizer: Any, text: str) -> list[int]:
    """Tokens of one text without special tokens, and without the warning that it is longer than the model."""
    found: list[int] = tokenizer(text, add_special_tokens=False, verbose=False).input_ids
    return found


def windows(tokenizer: Any, corpus: Corpus, seqlen: int, limit: int | None = None) -> Tensor:
    """Windows of `seqlen` tokens without overlap, BOS first where the tokenizer adds one: (windows, seqlen).

    Documents are joined by an empty line; what is left over at the end is dropped, as papers do.

    Raises:
        CrepeError: the text is shorter than one window.
    """
    start = bos_tokens(tokenizer)
    length = seqlen - len(start)
    tokens = encode(tokenizer, "\n\n".join(corpus.documents))
    count = len(tokens) // length
    if count == 0:
        raise CrepeError(f"{corpus.name} has {len(tokens)} tokens, one window needs {length}: lower --seqlen")
    body = torch.tensor(tokens[: count * length]).view(count, length)[:limit]
    return torch.cat([torch.tensor(start, dtype=torch.long).expand(len(body), -1), body], dim=1)


def digest(rows: Tensor) -> str:
    """sha256 of the rows, so that two runs can be compared."""
    return hashlib.sha256(rows.contiguous().numpy().tobytes()).hexdigest()
