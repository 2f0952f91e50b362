"""`crepe eval`: one model, alone or beside its reference."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from torch import Tensor

from crepe.errors import CrepeError, UsageError

SEQLEN = 2048
DATA = "wikitext2"
# Text that a model writes for its own evaluation must not be what it was calibrated on.
_SELF_SEED = 1_000_003
_SELF_WINDOWS = 16


def evaluate(
    model: str,
    *,
    data: str | None = None,
    seqlen: int = SEQLEN,
    max_windows: int | None = None,
    reference: str | None = None,
    tasks: list[str] | None = None,
    include_path: str | None = None,
    dtype: str = "auto",
    device: str = "auto",
    save: bool = False,
    trust_remote_code: bool = False,
    **images: Any,
) -> dict[str, Any]:
    """Token perplexity (and with `reference` KL and top-1 agreement) on `data`, and lm-eval `tasks`.

    Args:
        data: `wikitext2` unless said, else as for calibration; `self` is text written by the reference (or the
            model itself) with another seed.
        seqlen: tokens per window. max_windows: only the first so many.
        images: for image models `max_images`, `weights`, `reference_weights`, `latency`; see `crepe.eval.images`.
        save: write evaluation.json into the model's folder and make its card and report again.

    Raises:
        CrepeError: a model or text that cannot be read, a text shorter than a window. UsageError: wrong words.
    """
    from crepe.models.kind import is_image_model

    if is_image_model(model):
        from crepe.eval.images import evaluate_images

        text = {"tasks": tasks, "include_path": include_path, "max_windows": max_windows}
        _refuse(text, "not for image models")
        return evaluate_images(model, data=data, reference=reference, device=device, save=save, **images)
    _refuse(images, "only for image models")
    from crepe.checkpoint.manifest import published, read_manifest
    from crepe.checkpoint.read import load
    from crepe.eval.tasks import check_tasks, run_tasks
    from crepe.models.load import require_length

    if seqlen < 2 or (max_windows is not None and max_windows < 1):
        raise UsageError(f"seqlen = {seqlen}, windows = {max_windows}: at least 2 tokens and 1 window are needed")
    if save:
        read_manifest(Path(model))
    options: dict[str, Any] = {"dtype": dtype, "device": device, "trust_remote_code": trust_remote_code}
    if tasks:
        check_tasks(tasks, include_path)
    opened, tokenizer = load(model, **options)
    dense = load(reference, **options)[0] if reference else None
    require_length(opened.config, seqlen)
    found = _on_text(opened, dense, tokenizer, data, seqlen, max_windows, bool(tasks))
    if tasks:
        found["tasks"] = run_tasks(opened, tokenizer, tasks, include_path, seqlen)
    result = {"model": published(model), "reference": published(reference), "data": _label(data or DATA), **found}
    if save:
        save_result(Path(model), result)
    return result


def _refuse(given: dict[str, Any], why: str) -> None:
    for name, value in given.items():
        if value is not None:
            raise UsageError(f"{name} = {value!r}: {why}; leave it out")


def _on_text(
    model: Any, dense: Any, tokenizer: Any, data: str | None, seqlen: int, max_windows: int | None, has_tasks: bool
) -> dict[str, Any]:
    """Perplexity and fidelity; nulls where only tasks were asked for and the default text is out of reach."""
    from crepe.eval.perplexity import measure

    try:
        rows = _windows(dense or model, tokenizer, data or DATA, seqlen, max_windows)
    except CrepeError as error:
        if data is not None or not has_tasks:
            raise
        logging.getLogger("crepe").info("no perplexity: %s", error)
        return {"token_perplexity": None, "tokens": 0, "seqlen": seqlen}
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


def save_result(folder: Path, result: dict[str, Any]) -> None:
    from crepe.report.folder import write_report

    (folder / "evaluation.json").write_text(json.dumps(result, indent=2, default=str) + "\n")
    write_report(folder)
