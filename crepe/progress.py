"""Progress on stderr: bars on a terminal, nothing otherwise."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


def bars_wanted() -> bool:
    """Bars only where a person sees them, and not where Hugging Face's switch turns them off."""
    off = os.environ.get("HF_HUB_DISABLE_PROGRESS_BARS", "").upper() in ("1", "ON", "YES", "TRUE")
    return sys.stderr.isatty() and not off


@contextmanager
def bar(what: str, total: int) -> Iterator[Callable[[], object]]:
    """A progress bar of `total` steps; gives the function that makes one step."""
    from tqdm import tqdm

    with tqdm(total=total, desc=what, file=sys.stderr, disable=not bars_wanted(), leave=False) as shown:
        yield shown.update
