"""`crepe bench --kernels`: floors and ratios by hand; without a GPU nothing is claimed."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from conftest import fails
from crepe.cli.main import main
from crepe.eval.bench_kernels import copies, faster, floor
from crepe.kernels.bench.base import BENCHES, Way

NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


def _way(bytes_: int, flops: int) -> Way:
    return Way("some", lambda *_: (), lambda *_: torch.zeros(1), lambda *_: None, bytes_, flops)


def test_the_floor_is_the_longer_of_reading_and_computing() -> None:
    limits = {"bytes_per_second": 100.0, "flops_per_second": 10.0}
    assert floor(_way(200, 10), limits) == 2.0
    assert floor(_way(100, 50), limits) == 5.0


def test_ratios_are_against_every_baseline() -> None:
    ways: dict[str, Any] = {
        "sparse": {"us": 2.0, "baseline": False},
        "dense": {"us": 3.0, "baseline": True},
        "other": {"us": 1.0, "baseline": True},
    }
    assert faster(ways) == {"sparse": {"dense": 1.5, "other": 0.5}}


def test_copies_exceed_the_cache() -> None:
    assert copies(33 << 20, 60 << 20) * (33 << 20) >= 3 * (60 << 20)
    assert copies(1 << 40, 60 << 20) == 2


def test_every_case_has_a_baseline_and_a_floor() -> None:
    for name in BENCHES.names():
        for case in BENCHES.get(name)():
            assert any(way.baseline for way in case.ways) and any(not way.baseline for way in case.ways), case.label
            assert all(way.bytes > 0 for way in case.ways), case.label


@NO_GPU
def test_without_a_gpu_nothing_is_claimed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--kernels", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["cases"] == [] and "kernels are timed on a GPU" in found["not_measured"][0]
    assert main(["bench", "--kernels"]) == 0
    assert "not measured: " in capsys.readouterr().out


def test_a_name_that_no_case_has_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert "matches no case" in fails(capsys, 2, "bench", "--kernels", "--only", "nothing*")


def test_words_that_belong_to_models_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert "does not go with --kernels" in fails(capsys, 2, "bench", "--kernels", "--rounds", "3")
