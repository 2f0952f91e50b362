"""The study file: kills, several workers, wrong and broken journals, trials without a value, early stop."""

from __future__ import annotations

import logging
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import optuna
import pytest

from crepe.errors import CrepeError
from crepe.search.samplers import SAMPLERS
from crepe.search.space import Space
from crepe.search.study import best_trial, open_study, run_trials

SPACE = Space()


def _open(path: Path | None, **about: Any) -> Any:
    return open_study(path, SAMPLERS.get("cmaes")(SPACE, 0), about)


def _value(point: dict[str, Any]) -> float:
    return float(abs(point["activation"] - 1))


_WORKER = """
import os, sys, time
from pathlib import Path
from crepe.search.samplers import SAMPLERS
from crepe.search.space import Space
from crepe.search.study import open_study, run_trials
path, trials, die, wait = Path(sys.argv[1]), *map(int, sys.argv[2:5])
study = open_study(path, SAMPLERS.get("cmaes")(Space(), 0), {})
def value(point):
    if len(study.trials) == die:
        os.kill(os.getpid(), 9)
    end = time.time() + wait
    while time.time() < end and len({t.user_attrs.get("worker") for t in study.trials}) < 2:
        time.sleep(0.05)
    return abs(point["activation"] - 1)
run_trials(study, Space().suggest, value, trials, None)
"""


def test_killed_in_a_trial_and_resumed_gives_the_same_best(tmp_path: Path) -> None:
    whole = _open(tmp_path / "whole")
    run_trials(whole, SPACE.suggest, _value, 30, None)
    arguments = [sys.executable, "-c", _WORKER, str(tmp_path / "killed"), "30"]
    assert subprocess.run([*arguments, "12", "0"]).returncode == -9
    assert subprocess.run([*arguments, "0", "0"]).returncode == 0
    killed = optuna.load_study(study_name="crepe", storage=_open(tmp_path / "killed")._storage)
    assert [t.state.name for t in killed.trials].count("FAIL") == 1
    done = [t.params for t in killed.trials if t.state.name == "COMPLETE"]
    assert done == [t.params for t in whole.trials]
    assert best_trial(killed).value == best_trial(whole).value


def test_two_workers_on_one_study(tmp_path: Path) -> None:
    arguments = [sys.executable, "-c", _WORKER, str(tmp_path / "study"), "40", "0", "60"]
    workers = [subprocess.Popen(arguments) for _ in range(2)]
    assert [worker.wait(120) for worker in workers] == [0, 0]
    study = _open(tmp_path / "study")
    complete = [t for t in study.trials if t.state.name == "COMPLETE"]
    assert 40 <= len(complete) <= 41
    assert len({t.user_attrs["worker"] for t in complete}) == 2


def test_a_trial_that_died_elsewhere_is_given_up_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = _open(tmp_path / "study")
    run_trials(study, SPACE.suggest, _value, 5, None)
    trial = study.ask()
    study._storage.set_trial_user_attr(trial._trial_id, "worker", "elsewhere:7")
    assert _open(tmp_path / "study").trials[-1].state.name == "RUNNING"
    monkeypatch.setattr("crepe.search.study._ELSEWHERE", 0)
    monkeypatch.setattr("crepe.search.study._TIMES", 0)
    assert _open(tmp_path / "study").trials[-1].state.name == "FAIL"


def test_a_line_cut_short_by_a_kill_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "study"
    run_trials(_open(path), SPACE.suggest, _value, 10, None)
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"op_code": 4, "wor')
    study = _open(path)
    assert path.read_bytes().startswith(whole) and len(study.trials) == 10
    run_trials(study, SPACE.suggest, _value, 12, None)
    assert len(_open(path).trials) == 12


@pytest.mark.parametrize(
    "content", ["nonsense\n", "no line end", '{"op_code": 0}\n{"half\n', "[1]\n", '{"op_code": 77}\n']
)
def test_corrupt_journals(tmp_path: Path, content: str) -> None:
    path = tmp_path / "study"
    path.write_text(content)
    with pytest.raises(CrepeError, match="no journal of optuna"):
        _open(path)
    assert path.read_text() == content  # nothing lost


def test_another_study_is_refused_by_name(tmp_path: Path) -> None:
    _open(tmp_path / "study", pattern="2:4", seed=0)
    with pytest.raises(CrepeError, match=r"pattern is '2:4' there and '4:8' here"):
        _open(tmp_path / "study", pattern="4:8", seed=0)


def test_a_study_of_somebody_else_is_refused(tmp_path: Path) -> None:
    storage = _open(tmp_path / "study")._storage
    other = optuna.create_study(storage=storage, study_name="other")
    other.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=1)
    foreign = tmp_path / "foreign"
    backend = optuna.storages.journal.JournalFileBackend(str(foreign))
    study = optuna.create_study(storage=optuna.storages.JournalStorage(backend), study_name="crepe")
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=1)
    with pytest.raises(CrepeError, match="did not begin"):
        _open(foreign)


def test_a_value_of_nan_prunes_the_trial_and_names_it(caplog: pytest.LogCaptureFixture) -> None:
    study = _open(None)
    with caplog.at_level(logging.WARNING, "crepe"):
        run_trials(study, SPACE.suggest, lambda p: math.nan if p["balance"] < 0.5 else _value(p), 30, None)
    pruned = [t for t in study.trials if t.state.name == "PRUNED"]
    assert pruned and len(study.trials) == 30
    assert f"trial {pruned[0].number} has no value (nan)" in caplog.text
    assert (best_trial(study).value or 0) < 0.2


def test_a_bar_with_nothing_to_show_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crepe.progress.bars_wanted", lambda: True)
    values = iter([math.nan, 1.0, 0.5])
    study = _open(None)
    run_trials(study, SPACE.suggest, lambda point: next(values), 3, None)
    assert len(study.trials) == 3


def test_a_trial_that_another_process_gave_up_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    study = _open(None)

    def buried(point: dict[str, Any]) -> float:
        if len(study.trials) == 2:
            study._storage.set_trial_state_values(study.trials[-1]._trial_id, optuna.trial.TrialState.FAIL)
        return _value(point)

    run_trials(study, SPACE.suggest, buried, 4, None)
    assert [t.state.name for t in study.trials].count("COMPLETE") == 4 and "given up by another process" in caplog.text


def test_no_trial_with_a_value() -> None:
    study = _open(None)
    run_trials(study, SPACE.suggest, lambda point: math.nan, 3, None)
    with pytest.raises(CrepeError, match=r"none of [0-9]+ trials has a value: choose another --proxy"):
        best_trial(study)


def test_patience_stops_a_search_that_brings_nothing() -> None:
    study = _open(None)
    run_trials(study, SPACE.suggest, lambda point: 1.0, 100, 9)
    assert len(study.trials) == 10
