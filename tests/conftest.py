"""Shared ground of the tests: tiny models on disk, a tiny tokenizer, real data where it is there."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

sys.path.insert(0, str(Path(__file__).parent))
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Subprocesses import the installed package, not the folder they are started in.
os.environ.setdefault("PYTHONSAFEPATH", "1")

# A busy machine is no failure.
settings.register_profile("crepe", max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("crepe")

SHARED = Path(__file__).parent.parent.parent / "shared" / "data"
TEXT = " ".join(f"{word} {number}" for number in range(400) for word in ("the", "cat", "sat", "on", "a", "mat."))


def save_tokenizer(folder: Path) -> Any:
    """A tokenizer with one token per ASCII character and no special tokens added."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<pad>": 0, "<s>": 1, "</s>": 2, **{chr(i): i for i in range(3, 128)}}
    inner = Tokenizer(models.BPE(vocabulary, [], unk_token="<pad>"))
    inner.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    inner.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    tokenizer.save_pretrained(folder)
    return tokenizer


@pytest.fixture
def text_file(tmp_path: Path) -> str:
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return str(path)


@pytest.fixture
def tiny_folder(tmp_path: Path) -> Callable[..., str]:
    """Save a tiny model of a family with a tokenizer; returns the folder."""
    from families import tiny_model

    def save(model_type: str = "llama", **kwargs: Any) -> str:
        folder = tmp_path / f"tiny-{model_type}"
        tiny_model(model_type).save_pretrained(folder, **kwargs)
        save_tokenizer(folder)
        return str(folder)

    return save


def fails(capsys: pytest.CaptureFixture[str], code: int, *arguments: str) -> str:
    """Run a command that fails; returns its only line on stderr."""
    from crepe.cli.main import main

    capsys.readouterr()
    assert main(list(arguments)) == code
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if not line.startswith("model: ")]
    assert captured.out == "" and len(lines) == 1 and lines[0].startswith("crepe: error: "), captured
    return lines[0]
