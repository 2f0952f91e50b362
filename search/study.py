"""The study: an optuna journal file that any number of processes work on and that outlives each of them."""

from __future__ import annotations

import logging
import math
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import optuna
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from crepe.errors import CrepeError
from crepe.pipeline.fingerprint import first_change
from crepe.progress import bar
from crepe.search.samplers.base import WORKER, complete_trials, ended_trials

STUDY_NAME = "crepe"
_ABOUT = "about"
_BEGINNING = b'{"op_code":'
# A trial that nobody has claimed yet is taken to be just beginning for so many seconds.
_GRACE = 10
# A trial of another machine is given up after so many seconds, and so many times the longest trial.
_ELSEWHERE, _TIMES = 120, 10
_log = logging.getLogger("crepe.search")


def check_study(path: Path, about: dict[str, Any]) -> None:
    """Refuse a journal that is corrupt or of another study, as far as `about` tells, and change nothing.

    Raises:
        CrepeError: as `open_study`.
    """
    if path.is_file():
        with _quiet():
            storage, found = _storage(path), None
            if STUDY_NAME in optuna.get_all_study_names(storage):
                found = optuna.load_study(study_name=STUDY_NAME, storage=storage).user_attrs.get(_ABOUT)
        if found is not None:
            _refuse_if_different({key: found.get(key) for key in about}, about, path)


def open_study(path: Path | None, sampler: BaseSampler, about: dict[str, Any]) -> Study:
    """The study in the journal at `path`, a new one where there is none, one in memory without a path.

    about: flat names and values that the study's numbers depend on; a stored study has to have the same.

    Raises:
        CrepeError: the journal is corrupt, or it belongs to another study; what differs is named.
    """
    with _quiet():
        study = optuna.create_study(
            storage=_storage(path), study_name=STUDY_NAME, sampler=sampler, direction="minimize", load_if_exists=True
        )
        found = study.user_attrs.get(_ABOUT)
        if found is None:
            if study.trials:
                raise CrepeError(f"{path} holds a study that crepe did not begin: choose another --storage")
            study.set_user_attr(_ABOUT, about)
        else:
            _refuse_if_different(found, about, path)
        _bury_the_dead(study)
    return study


def _storage(path: Path | None) -> Any:
    from optuna.storages import InMemoryStorage, JournalStorage
    from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
    from optuna.storages.journal._file import get_lock_file

    if path is None:
        return InMemoryStorage()
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = JournalFileOpenLock(str(path))
    with get_lock_file(lock):
        _require_journal(path)
    try:
        return JournalStorage(JournalFileBackend(str(path), lock_obj=lock))
    except Exception as error:
        raise CrepeError(f"{path} is no journal of optuna, or a corrupt one: choose another --storage") from error


def _require_journal(path: Path) -> None:
    """Every line but one that a kill cut short at the end is a JSON object with an operation."""
    import json

    if not path.is_file():
        return
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines[:-1], 1):
        try:
            entry = json.loads(line)
        except ValueError:
            entry = None
        if not isinstance(entry, dict) or "op_code" not in entry:
            raise CrepeError(
                f"{path} is no journal of optuna, or a corrupt one (line {number}): choose another --storage, "
                "or cut the file off before that line to keep what came earlier"
            )
    if lines[-1]:
        if not _BEGINNING.startswith(lines[-1][: len(_BEGINNING)]):
            raise CrepeError(f"{path} is no journal of optuna: choose another --storage")
        # A process was killed while it wrote; what it had begun is not there for anybody.
        with path.open("r+b") as file:
            file.truncate(path.stat().st_size - len(lines[-1]))


def _refuse_if_different(found: dict[str, Any], about: dict[str, Any], path: Path | None) -> None:
    key = first_change(found, about)
    if key is not None:
        raise CrepeError(
            f"{path} holds another study: {key} is {found.get(key)!r} there and {about.get(key)!r} here; "
            "choose another --storage"
        )


def _bury_the_dead(study: Study) -> None:
    """Trials whose process is gone count as failed; their points are drawn again."""
    longest = max((t.duration.total_seconds() for t in ended_trials(study) if t.duration), default=0.0)
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        age = time.time() - trial.datetime_start.timestamp() if trial.datetime_start else math.inf
        owner = trial.user_attrs.get(WORKER)
        if _alive(owner, age, longest) if owner else age <= _GRACE:
            continue
        with suppress(optuna.exceptions.UpdateFinishedTrialError):  # another process was faster
            study._storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)


def _alive(worker: str, age: float, longest: float) -> bool:
    """Whether the process is there. One of another machine is taken to be, until its trial has taken far longer than
    the longest that ended. age, longest: seconds."""
    host, _, process = worker.rpartition(":")
    if not process:
        return False
    if host != socket.gethostname():
        return age < max(_ELSEWHERE, _TIMES * longest)
    if int(process) == os.getpid():
        return False
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def run_trials(
    study: Study, ask: Callable[[Any], Any], score: Callable[[Any], float], trials: int, patience: int | None
) -> None:
    """Try points until the study has `trials` of them, or nothing better came in the last `patience`.

    ask: gives a point for an optuna trial; score: its value. A value that is not finite prunes the trial.
    """
    with _quiet(), bar("search", trials) as advance:
        advance(finished_count(study))
        while finished_count(study) < trials and not _exhausted(study, patience):
            _one(study, ask, score)
            advance(1)
            _show_best(study, advance)


def _one(study: Study, ask: Callable[[Any], Any], score: Callable[[Any], float]) -> None:
    trial = study.ask()
    value = score(ask(trial))
    finite = math.isfinite(value)
    try:
        study.tell(trial, value if finite else None, TrialState.COMPLETE if finite else TrialState.PRUNED)
    except (ValueError, optuna.exceptions.UpdateFinishedTrialError):
        _log.warning("trial %d was given up by another process and is left out", trial.number)
        return
    if not finite:
        _log.warning("trial %d has no value (%s) and is left out: %s", trial.number, value, trial.params)


def finished_count(study: Study) -> int:
    """Trials that came to an end with or without a value; those that died do not count."""
    return len(ended_trials(study))


def _exhausted(study: Study, patience: int | None) -> bool:
    if patience is None or not complete_trials(study):
        return False
    best = best_trial(study)
    return sum(t.number > best.number for t in ended_trials(study)) >= patience


def best_trial(study: Study) -> FrozenTrial:
    """The best finished trial, the first of equals.

    Raises:
        CrepeError: none has a value.
    """
    complete = complete_trials(study)
    if not complete:
        raise CrepeError(f"none of {len(ended_trials(study))} trials has a value: choose another --proxy")
    return min(complete, key=lambda t: (t.value, t.number))


def _show_best(study: Study, advance: Any) -> None:
    shown = getattr(advance, "__self__", None)
    if shown is not None and not shown.disable and complete_trials(study):
        shown.set_postfix_str(f"best {best_trial(study).value:.6g}", refresh=False)


@contextmanager
def _quiet() -> Iterator[None]:
    """optuna's line per trial off; the bar and our own warnings say what matters."""
    import warnings

    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(level)
