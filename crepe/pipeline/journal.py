"""The work folder of a run: every finished block is on disk with a line in the journal.

`OUTPUT.partial/` holds `journal.jsonl` (the first line is the run's fingerprint, then one line per block), one
safetensors file per block, and the calibration rows. It becomes `OUTPUT` in one rename at the very end, so a folder
called OUTPUT is always complete.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from torch import Tensor

from crepe.checkpoint.files import save_tensors
from crepe.errors import CrepeError
from crepe.pipeline.fingerprint import refuse_if_changed


def work_folder(output: Path) -> Path:
    return output.with_name(output.name + ".partial")


def is_started(output: Path) -> bool:
    """Whether there is an unfinished run for this output."""
    return (work_folder(output) / "journal.jsonl").is_file()


class Journal:
    """Finished blocks of one run. `lines` maps block names to what was recorded of them."""

    def __init__(self, folder: Path, lines: dict[str, dict[str, Any]]) -> None:
        self.folder = folder
        self.lines = lines

    @classmethod
    def open(cls, output: Path, fingerprint: dict[str, Any], resume: bool, overwrite: bool) -> Journal:
        """Start a run, or go on with one.

        Raises:
            CrepeError: there is an unfinished run and neither resume nor overwrite, or the run to resume was
                made with another recipe or model (the message names what changed).
        """
        folder = work_folder(output)
        if folder.exists() and resume:
            return cls._reopen(folder, fingerprint)
        if folder.exists() and any(folder.iterdir()) and not is_started(output):
            raise CrepeError(
                f"{folder} exists and is no unfinished run of crepe: move it away, or choose another --output"
            )
        if folder.exists() and not overwrite:
            raise CrepeError(f"{folder} holds an unfinished run: --resume goes on with it, --overwrite starts again")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        journal = cls(folder, {})
        journal._append(fingerprint)
        return journal

    @classmethod
    def _reopen(cls, folder: Path, fingerprint: dict[str, Any]) -> Journal:
        lines = _read_lines(folder / "journal.jsonl")
        if not lines:
            shutil.rmtree(folder)
            return cls.open(folder.with_name(folder.name.removesuffix(".partial")), fingerprint, False, False)
        refuse_if_changed(lines[0], fingerprint, folder)
        journal = cls(folder, {})
        for line in lines[1:]:
            if not journal._is_intact(line):
                break
            journal.lines[line["block"]] = line
        journal._rewrite([lines[0], *journal.lines.values()])
        return journal

    def _is_intact(self, line: dict[str, Any]) -> bool:
        sizes = {self.folder / name: size for name, size in line["files"].items()}
        return all(path.is_file() and path.stat().st_size == size for path, size in sizes.items())

    def record(self, block: str, files: dict[str, dict[str, Tensor]], report: dict[str, Any]) -> None:
        """Write the tensors of a finished block, then its line. Raises CrepeError where the disk refuses."""
        sizes = {name: save_tensors(self.folder / name, tensors) for name, tensors in files.items()}
        line = {"block": block, "files": sizes, **report}
        self.lines[block] = line
        self._append(line)

    def forget(self) -> None:
        """Drop all finished blocks: the run goes on in another way."""
        first = _read_lines(self.folder / "journal.jsonl")[:1]
        self.lines.clear()
        self._rewrite(first)

    def _append(self, line: dict[str, Any]) -> None:
        with open(self.folder / "journal.jsonl", "a") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def _rewrite(self, lines: list[dict[str, Any]]) -> None:
        fresh = self.folder / "journal.jsonl.new"
        fresh.write_text("".join(json.dumps(line) + "\n" for line in lines))
        os.replace(fresh, self.folder / "journal.jsonl")


def _read_lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of the journal; a line that a kill cut short is dropped with all behind it."""
    lines: list[dict[str, Any]] = []
    for text in path.read_text().splitlines() if path.is_file() else []:
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines
