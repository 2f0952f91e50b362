"""crepe: prunes trained Hugging Face models in one command.

The names below are imported when they are first used, so that `import crepe` and `crepe --help` stay quick.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

from crepe.checkpoint.hook import announce_to_transformers

__version__ = "0.1.0"

if TYPE_CHECKING:
    from crepe.checkpoint.hub import push
    from crepe.checkpoint.read import load
    from crepe.errors import CrepeError, UsageError
    from crepe.eval.evaluate import evaluate
    from crepe.pipeline.job import prune
    from crepe.pipeline.result import Result
    from crepe.search.find import find_coefficients

_PLACES = {
    "CrepeError": "crepe.errors",
    "Result": "crepe.pipeline.result",
    "UsageError": "crepe.errors",
    "evaluate": "crepe.eval.evaluate",
    "find_coefficients": "crepe.search.find",
    "load": "crepe.checkpoint.read",
    "prune": "crepe.pipeline.job",
    "push": "crepe.checkpoint.hub",
}

# In a checkout the folders `configs`, `eval`, `search` and `kernels` lie beside this one; installed, inside it.
if not os.path.isdir(os.path.join(__path__[0], "configs")):
    __path__.append(os.path.dirname(__path__[0]))

__all__ = ["CrepeError", "Result", "UsageError", "evaluate", "find_coefficients", "load", "prune", "push"]


# The one thing that has to be done on import: transformers cannot find crepe's checkpoints by itself.
announce_to_transformers()


def __getattr__(name: str) -> Any:
    if name in _PLACES:
        return getattr(importlib.import_module(_PLACES[name]), name)
    raise AttributeError(f"module 'crepe' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
