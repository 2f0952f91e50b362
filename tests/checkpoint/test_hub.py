"""crepe push against a local server that speaks the Hub's protocol."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import crepe
from crepe.errors import CrepeError, UsageError

sys.path.insert(0, str(Path(__file__).parent))
from hub_server import Hub, running_hub


@pytest.fixture
def hub() -> Iterator[tuple[Hub, str]]:
    with running_hub() as running:
        yield running


@pytest.fixture
def output(tiny_folder: Callable[..., str], text_file: str, tmp_path: Path) -> Path:
    crepe.prune(tiny_folder(), tmp_path / "out", calibration=text_file, samples=4, seqlen=16)
    return tmp_path / "out"


def _push(url: str, *arguments: str, token: str = "hf_test") -> Any:
    """huggingface_hub reads the address at import, so the push runs in a process of its own."""
    environment = {
        **os.environ,
        "HF_ENDPOINT": url,
        "HF_TOKEN": token,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_OFFLINE": "0",
    }
    command = [sys.executable, "-m", "crepe", "push", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


def test_push_is_private_complete_and_never_overwrites(hub: tuple[Hub, str], output: Path) -> None:
    state, url = hub
    done = _push(url, str(output), "owner/tiny-pruned", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["private"] is True
    repository = state.repositories["owner/tiny-pruned"]
    assert repository["private"] is True
    assert repository["files"] == {p.name: p.read_bytes() for p in output.iterdir()}
    assert "hf_test" not in done.stdout + done.stderr

    again = _push(url, str(output), "owner/tiny-pruned")
    assert again.returncode == 1 and "already has files" in again.stderr and "--create-pr" in again.stderr

    before = dict(repository["files"])
    proposed = _push(url, str(output), "owner/tiny-pruned", "--create-pr")
    assert proposed.returncode == 0, proposed.stderr
    assert "discussions/1" in proposed.stdout and repository["files"] == before and repository["proposed"]


def test_public_is_asked_for(hub: tuple[Hub, str], output: Path) -> None:
    state, url = hub
    assert _push(url, str(output), "owner/open", "--public").returncode == 0
    assert state.repositories["owner/open"]["private"] is False


def test_a_refused_token_is_one_line(hub: tuple[Hub, str], output: Path) -> None:
    done = _push(hub[1], str(output), "owner/tiny", token="hf_wrong")
    assert done.returncode == 1 and "hf auth login" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1 and "Traceback" not in done.stderr


def test_no_network_is_one_line(output: Path) -> None:
    done = _push("http://127.0.0.1:9", str(output), "owner/tiny")
    assert done.returncode == 1 and "cannot push to owner/tiny" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_dry_run_asks_nobody(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.HfApi", None)
    done = crepe.push(output, "owner/tiny", dry_run=True)
    assert done.private and done.url is None and done.files["crepe.json"] > 0


def test_bad_arguments(output: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="owner/name"):
        crepe.push(output, "tiny")
    with pytest.raises(CrepeError, match="no output of crepe prune"):
        crepe.push(tmp_path, "owner/tiny")
