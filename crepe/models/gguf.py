"""Reading a .gguf file once.

transformers opens the file anew for the config, the weights and the tokenizer, and parses some hundred thousand
Python objects each time; the name map of its architecture it even builds once per module. For the time of a load
both are remembered, and the garbage collector does not walk the growing heap.
"""

from __future__ import annotations

import functools
import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def reading_once() -> Iterator[None]:
    """Inside, every .gguf file is parsed at most once."""
    import gguf

    originals = {name: getattr(gguf, name) for name in ("GGUFReader", "get_tensor_name_map")}
    collecting = gc.isenabled()
    gc.disable()
    for name, original in originals.items():
        setattr(gguf, name, functools.cache(original))
    try:
        yield
    finally:
        for name, original in originals.items():
            setattr(gguf, name, original)
        if collecting:
            gc.enable()
