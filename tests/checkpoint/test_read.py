"""What loading checks before anything is looked for, and what it reads once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from crepe.checkpoint import read
from crepe.errors import UsageError
from crepe.models import resolve
from crepe.models.resolve import Source


@pytest.mark.parametrize("load", [read.load, read.load_model])
def test_a_wrong_device_is_refused_before_weights_are_looked_for(
    load: Callable[..., Any], tiny_folder: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny_folder()
    monkeypatch.setattr(resolve, "resolve", lambda *given, **words: pytest.fail("weights were looked for"))
    with pytest.raises(UsageError, match="nonsense"):
        load(folder, device="nonsense")


@pytest.mark.parametrize("load", [read.load, read.load_model])
def test_a_gguf_file_is_read_once(load: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gguf = pytest.importorskip("gguf")
    remembered: list[bool] = []

    def opened(*given: Any) -> torch.nn.Module:
        remembered.append(hasattr(gguf.GGUFReader, "cache_info"))
        return torch.nn.Linear(1, 1)

    monkeypatch.setattr(resolve, "resolve", lambda name: Source(name, "", tmp_path, gguf="model.gguf"))
    monkeypatch.setattr(resolve, "announce", lambda source: None)
    monkeypatch.setattr(read, "_open", opened)
    monkeypatch.setattr("crepe.models.load.load_tokenizer", lambda *given: opened())
    load("model.gguf")
    assert remembered and all(remembered)


def test_an_image_model_is_no_language_model(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"architectures": ["ViTForImageClassification"]}')
    with pytest.raises(UsageError, match=r"image model: `crepe eval .* --latency` times it"):
        read.load_model(str(tmp_path))
