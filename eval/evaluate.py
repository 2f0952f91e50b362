"""`crepe eval`: one model, alone or beside its reference."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import Tensor

from crepe.errors import CrepeError, UsageError

SEQLEN = 2048
# Text that a model writes for its own evaluation must not be what it was calibrated on.
_SELF_SEED = 1_000_003
_SELF_WINDOWS = 16


def evaluate(
    model: str,
    *,
    data: str = "wikitext2",
    seqlen: int = SEQLEN,
    max_windows: int | None = None,
    reference: str | None = None,
    tasks: list[str] | None = None,
    include_path: str | None = None,
    dtype: str = "auto",
    device: str = "auto",
    save: bool = False,
    trust_remote_code: bool = False,
) -> dict[str, Any]:
    """Token perplexity (and with `reference` KL and top-1 agreement) on `data`, and lm-eval `tasks`.

    Args:
        data: as for calibration; `self` is text written by the reference (or the model itself) with another seed.
        seqlen: tokens per window. max_windows: only the first so many.
        save: write evaluation.json into the model's folder and make its card and report again.

    Raises:
        CrepeError: a model or text that cannot be read, a text shorter than a window. UsageError: wrong words.
    """
    from crepe.checkpoint.read import load
    from crepe.report.folder import read_manifest

    if seqlen < 2 or (max_windows is not None and max_windows < 1):
        raise UsageError(f"seqlen = {seqlen}, windows = {max_windows}: at least 2 tokens and 1 window are needed")
    if save:
        read_manifest(Path(model))
    options: dict[str, Any] = {"dtype": dtype, "device": device, "trust_remote_code": trust_remote_code}
    opened, tokenizer = load(model, **options)
    dense = load(reference, **options)[0] if reference else None
    _require_length(opened, seqlen)
    found = _on_text(opened, dense, tokenizer, data, seqlen, max_windows)
    if tasks:
        from crepe.eval.tasks import run_tasks

        found["tasks"] = run_tasks(opened, tokenizer, tasks, include_path, seqlen)
    result = {"model": model, "reference": reference, "data": _label(data), **found}
    if save:
        _save(Path(model), result)
    return result


def _on_text(model: Any, dense: Any, tokenizer: Any, data: str, seqlen: int, max_windows: int | None) -> dict[str, Any]:
    from crepe.eval.perplexity import measure

    rows = _windows(dense or model, tokenizer, data, seqlen, max_windows)
    return {**measure(model, dense, rows), "seqlen": seqlen, "windows": len(rows)}


def _windows(writer: Any, tokenizer: Any, data: str, seqlen: int, max_windows: int | None) -> Tensor:
    from crepe.calibration.self_text import self_rows
    from crepe.calibration.text import read_corpus
    from crepe.calibration.tokens import windows

    if data == "self":
        return self_rows(writer, tokenizer, max_windows or _SELF_WINDOWS, seqlen, _SELF_SEED)
    return windows(tokenizer, read_corpus(data, "evaluation"), seqlen, max_windows)


def _label(data: str) -> str:
    """A file by its name alone: cards are published, paths of a machine are not."""
    if data == "self":
        return "text written by the dense model"
    return Path(data).name if Path(data).suffix else data


def _require_length(model: Any, seqlen: int) -> None:
    longest = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if longest is not None and 0 < longest < seqlen:
        raise CrepeError(f"seqlen {seqlen} is more than the {longest} tokens that the model can read: lower --seqlen")


def _save(folder: Path, result: dict[str, Any]) -> None:
    from crepe.report.folder import write_report

    (folder / "evaluation.json").write_text(json.dumps(result, indent=2, default=str) + "\n")
    write_report(folder)
