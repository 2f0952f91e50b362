"""Prefill and decode of one model as two functions that can be timed, on a cache of fixed size."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from crepe.errors import CrepeError


class Generation:
    """A model with a prompt. `prefill` reads the prompt; `decode` then makes `steps` tokens, one after the other.

    prompt: (batch, tokens). The cache has a fixed size, so that a decode step can be recorded as a CUDA graph and
    replayed: then the step costs what the GPU computes, not what Python takes to launch it. compiled: the decode step
    is fused by torch.compile before that; prefill runs as it is.

    Raises:
        CrepeError: torch.compile cannot compile the step.
    """

    def __init__(self, model: Any, prompt: Tensor, steps: int, compiled: bool = False) -> None:
        from transformers import StaticCache

        self.model = model
        self.writer = model
        self.prompt = prompt
        self.steps = steps
        self.cache = StaticCache(config=model.config, max_cache_len=prompt.shape[1] + steps + 1)
        self.token = prompt[:, -1:].clone()
        self.graph_refused: str | None = None
        self._step: Callable[[], None] = self._forward
        if compiled:
            self._compile()

    def _compile(self) -> None:
        self.writer = torch.compile(self.model, dynamic=False)
        self.prefill()
        try:
            with torch.no_grad():
                self._forward()
        except RuntimeError as error:
            reason = " ".join(str(error).split("\n\n")[0].split())  # behind it comes how to debug torch
            raise CrepeError(
                f"torch.compile cannot compile the decode step here: {reason}; install a C++ compiler, or leave "
                "--compile out"
            ) from error

    def prefill(self) -> None:
        self.cache.reset()
        with torch.no_grad():
            logits = self._logits(self.model, self.prompt)
        self.token.copy_(logits.argmax(-1))

    def decode(self) -> None:
        with torch.no_grad():
            for _ in range(self.steps):
                self._step()

    def record(self) -> bool:
        """Record the decode step as a CUDA graph, where there is CUDA; whether that went well."""
        if not self.prompt.is_cuda:
            self.graph_refused = "no CUDA device"
            return False
        try:
            self._step = self._captured()
        except RuntimeError as error:
            self.graph_refused = str(error).splitlines()[0]
            logging.getLogger("crepe").warning("no CUDA graph of the decode step: %s", self.graph_refused)
            return False
        return True

    def _captured(self) -> Callable[[], None]:
        self.prefill()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.no_grad(), torch.cuda.stream(stream):
            self._forward()
        torch.cuda.current_stream().wait_stream(stream)
        self.prefill()
        graph = torch.cuda.CUDAGraph()
        with torch.no_grad(), torch.cuda.graph(graph):
            self._forward()
        replay: Callable[[], None] = graph.replay
        return replay

    def _forward(self) -> None:
        self.token.copy_(self._logits(self.writer, self.token).argmax(-1))

    def _logits(self, model: Any, tokens: Tensor) -> Tensor:
        """The logits of the last position, (batch, 1, vocabulary)."""
        found: Tensor = model(tokens, past_key_values=self.cache, use_cache=True, logits_to_keep=1).logits
        return found
