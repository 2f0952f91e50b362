"""Runs from folder to folder that are killed on the way, and what of their output has to be the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import crepe
from crepe.pipeline.journal import Journal, work_folder

FIELDS: dict[str, Any] = {"samples": 6, "seqlen": 24, "batch_size": 2}


def files_of(folder: Path) -> dict[str, bytes]:
    """Everything but the timings."""
    found = {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if p.name != "crepe.json"}
    manifest = json.loads((folder / "crepe.json").read_text())
    for key in ("timings", "peak_memory_bytes"):
        del manifest[key]
    return {**found, "crepe.json": json.dumps(manifest, sort_keys=True).encode()}


def prune_named(folder: str, output: Path, text: str, **fields: Any) -> Any:
    return crepe.prune(folder, output, calibration=text, **{**FIELDS, **fields})


class Killed(Exception):
    pass


def kill_after(monkeypatch: pytest.MonkeyPatch, blocks: int) -> None:
    original, count = Journal.record, [0]

    def record(self: Journal, *args: Any) -> None:
        if count[0] == blocks:
            raise Killed
        count[0] += 1
        original(self, *args)

    monkeypatch.setattr(Journal, "record", record)


def assert_resume_gives_the_same_bytes(folder: str, text: str, place: Path, **fields: Any) -> None:
    """Kill a run after its first block, go on with it, and hold it against one that was left alone."""
    prune_named(folder, place / "whole", text, **fields)
    with pytest.MonkeyPatch.context() as patch:
        kill_after(patch, 1)
        with pytest.raises(Killed):
            prune_named(folder, place / "resumed", text, **fields)
    assert not (place / "resumed").exists()
    prune_named(folder, place / "resumed", text, resume=True, **fields)
    assert files_of(place / "resumed") == files_of(place / "whole")
    assert not work_folder(place / "resumed").exists()
