"""The walk over the blocks, with the model's own forward in charge.

Every batch runs the parent's forward in a thread of its own. At the entrance of each block the thread stops and
hands its arguments over; the walk runs the block for all batches, one after the other, and hands the outputs back.
So masks, rotary tables, per-layer arguments and state shared between layers are made and carried by the model
itself, and the weights of one block at a time have to be in memory. Only one thread ever runs.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from crepe.models.blocks import Block
from crepe.models.wide import wide_products


class OutOfOrder(Exception):
    """The forward does not enter every block once, in the order of the list: it cannot be walked."""


class _Stop(BaseException):
    """Raised inside a parent forward that is no longer needed."""


@dataclass
class Call:
    """A stopped call of a block: where, and with what."""

    block: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class _Parent:
    """One batch inside the parent's forward: runs until the next block, waits for that block's output."""

    def __init__(self, forward: Callable[[], Any]) -> None:
        self._to_walk: queue.SimpleQueue[Call | BaseException | None] = queue.SimpleQueue()
        self._to_parent: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.call: Call | None = None
        self._thread = threading.Thread(target=self._run, args=(forward,), daemon=True)

    def start(self) -> None:
        self._thread.start()
        self._wait()

    def resume(self, output: Any) -> None:
        """Give the block's output back and run to the next block, or to the end."""
        self._to_parent.put(output)
        self._wait()

    def close(self) -> None:
        """Leave the forward where it stands."""
        if self.call is not None:
            self._to_parent.put(_Stop())
            self._thread.join()
            self.call = None

    def enter(self, call: Call) -> Any:
        """Called by a block inside the parent's thread."""
        self._to_walk.put(call)
        del call
        answer = self._to_parent.get()
        if isinstance(answer, _Stop):
            raise answer
        return answer

    def _wait(self) -> None:
        self.call = None
        message = self._to_walk.get()
        if isinstance(message, BaseException):
            raise message
        self.call = message

    def _run(self, forward: Callable[[], Any]) -> None:
        _CURRENT.parent = self
        try:
            # What the walk has entered does not hold in this thread.
            with torch.no_grad(), wide_products(torch.device("cpu")):
                forward()
            self._to_walk.put(None)
        except _Stop:
            pass
        except BaseException as error:
            self._to_walk.put(error)


_CURRENT = threading.local()


class Walk:
    """Iterate over `blocks`; for each, call `run` as often as needed, then `advance`.

    streams: how often every batch walks. What one stream sees of the weights is up to the caller: a second one that
    is advanced before a block is pruned goes on as the dense model would. forward: how the model takes a batch.
    """

    def __init__(
        self,
        model: nn.Module,
        blocks: Sequence[Block],
        batches: Sequence[Tensor],
        streams: int = 1,
        forward: Callable[[Any, Tensor], Any] | None = None,
    ) -> None:
        self.blocks = blocks
        run = partial(forward or forward_tokens, model)
        self._streams = [[_Parent(partial(run, batch)) for batch in batches] for _ in range(streams)]
        self._forwards = {block.module: block.module.forward for block in blocks}
        self._originals = {module: module.__dict__.get("forward") for module in self._forwards}

    @contextmanager
    def started(self) -> Iterator[None]:
        """Blocks stop their callers inside; the model is as before after."""
        try:
            for module in self._forwards:
                module.forward = _stopping_forward(module)
            for parent in chain(*self._streams):
                parent.start()
            yield
        finally:
            for parent in chain(*self._streams):
                parent.close()
            for module, original in self._originals.items():
                if original is None:
                    del module.forward
                else:
                    module.forward = original

    def calls(self, block: Block, stream: int = 0) -> Iterator[Call]:
        """With what each batch has stopped at `block`."""
        for parent in self._streams[stream]:
            if parent.call is None or parent.call.block is not block.module:
                raise OutOfOrder(block.name)
            yield parent.call

    def forward(self, call: Call) -> Any:
        """The block's own forward on what a batch has stopped with, with gradients where they are on."""
        return self._forwards[call.block](*call.args, **call.kwargs)

    def run(self, block: Block, stream: int = 0) -> Iterator[Any]:
        """Outputs of `block` for every batch, lazily, one at a time."""
        for call in self.calls(block, stream):
            with torch.no_grad():
                yield self.forward(call)

    def advance(self, block: Block, stream: int = 0, change: Callable[[Any], Any] | None = None) -> None:
        """Run `block` for every batch and pass each output on at once, so that only one is alive at a time.

        Behind the last block nothing is needed any more: neither the final norm nor the head is run.
        change: what is passed on instead of an output.
        """
        for _ in self.advancing(block, stream, change):
            pass

    def advancing(self, block: Block, stream: int = 0, change: Callable[[Any], Any] | None = None) -> Iterator[Any]:
        """`advance`, with the outputs to look at as they pass."""
        last = self.is_last(block)
        for parent, output in zip(self._streams[stream], self.run(block, stream), strict=True):
            if not last:
                parent.resume(change(output) if change else output)
            yield output
            del output

    def is_last(self, block: Block) -> bool:
        return block is self.blocks[-1]


def _stopping_forward(module: nn.Module) -> Callable[..., Any]:
    def forward(*args: Any, **kwargs: Any) -> Any:
        parent: _Parent = _CURRENT.parent
        return parent.enter(Call(module, args, kwargs))

    return forward


def forward_tokens(model: Any, tokens: Tensor) -> Any:
    """Full-length rows need no attention mask and no cache. tokens: (batch, length)."""
    return model(input_ids=tokens, use_cache=False)
