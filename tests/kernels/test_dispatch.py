"""The dispatcher: what fits first runs, and a backend asked for by name never falls back."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from crepe.errors import CrepeError, UsageError
from crepe.kernels.dispatch import OPERATIONS, Backend, Operation, always
from crepe.kernels.operations.tensors import device_of

DOUBLE = Operation(
    "double",
    (
        Backend("small", lambda x: ("small", 2 * x), lambda x: None if x < 10 else f"{x} is not under 10"),
        Backend("torch", lambda x: ("torch", 2 * x), always),
    ),
)


def test_the_first_that_fits_runs() -> None:
    assert DOUBLE.run(3) == ("small", 6)
    assert DOUBLE.run(30) == ("torch", 60)


def test_what_does_not_suit_runs_only_by_name() -> None:
    can = Backend("can", lambda x: "can", always, suits=lambda x: x > 5)
    operation = Operation("either", (can, Backend("torch", lambda x: "torch", always)))
    assert operation.run(6) == "can" and operation.run(5) == "torch"
    assert operation.run(5, backend="can") == "can"


def test_the_choice_is_remembered_by_sizes_and_places() -> None:
    asked: list[int] = []

    def short(x: torch.Tensor) -> str | None:
        asked.append(len(x))
        return None if len(x) < 3 else "it is long"

    operation = Operation("sum", (Backend("short", torch.sum, short), Backend("torch", torch.sum, always)))
    names = [operation.choose(torch.ones(size)).name for size in (2, 2, 3, 3, 2)]
    assert names == ["short", "short", "torch", "torch", "short"] and asked == [2, 3]
    assert operation.choose(torch.ones(3, 2).t()).name == "short" and asked == [2, 3, 2]


def test_a_named_backend_never_falls_back() -> None:
    assert DOUBLE.run(3, backend="torch") == ("torch", 6)
    with pytest.raises(CrepeError, match="double cannot run on backend 'small': 30 is not under 10"):
        DOUBLE.run(30, backend="small")


def test_an_unknown_backend_is_named() -> None:
    with pytest.raises(UsageError, match="smal"):
        DOUBLE.run(3, backend="smal")


def test_the_page_of_operations_names_all_of_them_with_their_backends() -> None:
    page = (Path(__file__).parents[2] / "docs" / "kernels.md").read_text()
    rows = [line.split("|") for line in page.splitlines() if line.startswith("| `")]
    described = {name.strip(" `"): row[2] for row in rows for name in row[1].split(",")}
    assert set(described) == set(OPERATIONS.names())
    for name, backends in described.items():
        found = [part.strip(" ()`") for part in backends.split(",")]
        assert found == [backend.name for backend in OPERATIONS.get(name).backends]


def test_the_current_gpu_is_changed_only_where_it_has_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    changed: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.cuda, "device", lambda place: changed.append(place) or nullcontext())
    for tensor in (SimpleNamespace(is_cuda=True, device=torch.device("cuda", index)) for index in (0, 1)):
        with device_of(tensor):  # type: ignore[arg-type]
            pass
    with device_of(torch.ones(1)):
        pass
    assert changed == [torch.device("cuda", 0)]
