"""Making crepe's checkpoints known to transformers, without importing it: `import crepe` stays light.

transformers has no way to discover such classes, they have to be registered in its process. Where it is loaded already
that is done at once, else in the moment in which it loads the module that keeps the register.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

_REGISTER = "transformers.quantizers.auto"


def announce_to_transformers() -> None:
    """Register now, or when transformers is imported."""
    if _REGISTER in sys.modules:
        _register()
    elif not any(isinstance(finder, _Watch) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Watch())


def _register() -> None:
    import crepe.checkpoint.quantizer  # noqa: F401


class _Watch(MetaPathFinder):
    """Finds one module the way all others are found, and registers once it has been executed.

    Who merely asks where the module is (importlib.util.find_spec) finds it too, so that only its execution counts.
    """

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != _REGISTER:
            return None
        others = (finder for finder in list(sys.meta_path) if finder is not self)
        spec = next((found for finder in others if (found := finder.find_spec(name, path, target))), None)
        if spec is not None and spec.loader is not None:
            loader: Any = spec.loader
            execute = loader.exec_module

            def exec_module(module: ModuleType) -> None:
                execute(module)
                _register()
                if self in sys.meta_path:
                    sys.meta_path.remove(self)

            loader.exec_module = exec_module
        return spec
