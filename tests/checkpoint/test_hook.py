"""The watch for one module: asking where it is changes nothing, importing it registers, once."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from crepe.checkpoint import hook


@pytest.fixture
def registered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bool]]:
    """A module that stands for the register of transformers; whether it had been executed, each time it is used."""
    (tmp_path / "the_register.py").write_text("READY = True\n")
    calls: list[bool] = []
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    monkeypatch.setattr(hook, "_REGISTER", "the_register")
    monkeypatch.setattr(hook, "_register", lambda: calls.append(sys.modules["the_register"].READY))
    hook.announce_to_transformers()
    yield calls
    sys.modules.pop("the_register", None)


def _watches() -> int:
    return sum(isinstance(finder, hook._Watch) for finder in sys.meta_path)


def test_asking_where_it_is_leaves_the_watch(registered: list[bool]) -> None:
    for _ in range(2):
        spec = importlib.util.find_spec("the_register")
        assert spec is not None and spec.origin is not None and spec.origin.endswith("the_register.py")
    assert registered == [] and _watches() == 1
    importlib.import_module("the_register")
    assert registered == [True] and _watches() == 0


def test_announcing_twice_watches_once(registered: list[bool]) -> None:
    hook.announce_to_transformers()
    assert _watches() == 1
    importlib.import_module("the_register")
    assert registered == [True]


def test_a_module_that_fails_is_watched_on(registered: list[bool], tmp_path: Path) -> None:
    good = (tmp_path / "the_register.py").read_text()
    (tmp_path / "the_register.py").write_text("raise ValueError('not now, not yet')\n")
    with pytest.raises(ValueError, match="not now"):
        importlib.import_module("the_register")
    assert registered == [] and _watches() == 1
    (tmp_path / "the_register.py").write_text(good)
    importlib.invalidate_caches()
    importlib.import_module("the_register")
    assert registered == [True]


def test_what_is_there_already_is_used_at_once(registered: list[bool]) -> None:
    importlib.import_module("the_register")
    hook.announce_to_transformers()
    assert registered == [True, True] and _watches() == 0
