"""lm-eval tasks on a loaded model. Its numbers keep lm-eval's own form; they are never mixed with ours."""

from __future__ import annotations

import logging
from typing import Any

from crepe.errors import CrepeError, UsageError
from crepe.models.wide import wide_products


def run_tasks(model: Any, tokenizer: Any, tasks: list[str], include_path: str | None, seqlen: int) -> dict[str, Any]:
    """lm-eval's results for `tasks`; with `include_path` the local task files there are found first.

    Raises:
        CrepeError: a task fails.
    """
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    manager = check_tasks(tasks, include_path)
    wrapped = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1, max_length=seqlen)
    try:
        with wide_products(next(model.parameters()).device):
            found = simple_evaluate(
                model=wrapped,
                tasks=tasks,
                task_manager=manager,
                bootstrap_iters=0,
                log_samples=False,
                verbosity="ERROR",
            )
    except Exception as error:
        raise CrepeError(f"lm-eval failed on {', '.join(tasks)}: {type(error).__name__}: {error}") from error
    keys = ("results", "versions", "n-shot", "higher_is_better")  # its config holds paths of this machine
    return {key: found[key] for key in keys if key in found}


def check_tasks(tasks: list[str], include_path: str | None) -> Any:
    """lm-eval's task manager, once it knows all `tasks`.

    Raises:
        UsageError: an unknown task. CrepeError: lm-eval is not installed.
    """
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise CrepeError("--tasks needs lm-eval: pip install 'crepe-prune[eval]'") from error
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    return _manager(TaskManager, tasks, include_path)


def _manager(kind: Any, tasks: list[str], include_path: str | None) -> Any:
    """Only the local tasks where they are all that is asked for: indexing lm-eval's own takes a while."""
    if include_path:
        local = kind(include_path=include_path, include_defaults=False)
        if all(task in local.all_tasks for task in tasks):
            return local
    manager = kind(include_path=include_path)
    unknown = [task for task in tasks if task not in manager.all_tasks]
    if unknown:
        raise UsageError(
            f"unknown lm-eval task {unknown[0]!r}: `lm-eval ls tasks` lists them, --include-path adds your own"
        )
    return manager
