"""Pictures of measurements: bars as high as the numbers, the floor where it belongs, the same bytes again."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from conftest import fails
from crepe.cli.bench import _kernel_lines
from crepe.cli.main import main
from crepe.eval.bench_kernels import faster, microseconds
from crepe.eval.timing import Timing
from crepe.report import bench as pictures
from crepe.report.bench import kernel_picture, model_picture, write_bench
from crepe.report.plots import Panel, panels


def _way(us: float, floor: float, baseline: bool = False) -> dict[str, Any]:
    timing = Timing((0.8e-6 * us, 1e-6 * us, 1.6e-6 * us))
    return microseconds(timing) | {"floor_us": floor, "baseline": baseline}


def _case(operation: str, tokens: int, ways: dict[str, Any]) -> dict[str, Any]:
    shape = [tokens, 4096, 4096]
    more = {"refused": {}, "times_faster": faster(ways)}
    return {"operation": operation, "label": "some layer", "shape": shape, "ways": ways, **more}


KERNELS: dict[str, Any] = {
    "machine": {"device": "a GPU", "bytes_per_second": 4e12, "flops_per_second": 7e14},
    "cases": [
        _case("sp24_linear", 1, {"matvec": _way(5, 4), "matmul": _way(8, 4), "F.linear": _way(10, 8, True)}),
        _case("sp24_linear", 16, {"matmul": _way(20, 10), "F.linear": _way(10, 8, True)}),
        _case("sp24_linear", 64, {"matmul": _way(20, 10)}),  # cuBLAS failed
        _case("sp24_unpack", 0, {"triton": _way(30, 20), "copy": _way(40, 30, True)}),
    ],
    "not_measured": [],
}


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Panel]:
    """The panels that are drawn, beside drawing them."""
    seen: list[Panel] = []

    def noted(parts: Sequence[Panel], *arguments: Any) -> str:
        seen.extend(parts)
        return panels(parts, *arguments)

    monkeypatch.setattr(pictures, "panels", noted)
    return seen


def test_kernels_are_drawn_against_cublas_with_their_floor(drawn: list[Panel]) -> None:
    picture = kernel_picture(KERNELS)
    (panel,) = drawn
    assert panel.title.startswith("sp24_linear") and panel.names == ["some layer, 1", "some layer, 16"]
    assert panel.series["fastest way"] == pytest.approx([2.0, 0.5])
    assert panel.marks is not None and panel.marks[1] == pytest.approx([2.5, 1.0])
    assert panel.spread["fastest way"][0] == pytest.approx((10 / 6.5, 10 / 4.5))
    assert picture.startswith("<svg") and "times faster than cuBLAS" in picture and "some layer, 16" in picture
    assert kernel_picture(json.loads(json.dumps(KERNELS))) == picture


def test_the_table_has_the_quartiles() -> None:
    lines = _kernel_lines(KERNELS)
    assert "quartiles" in lines[0] and any("4.5 to 6.5" in line and "2.00x F.linear" in line for line in lines)


def test_quartiles_of_a_timing() -> None:
    assert Timing((4.0, 1.0, 2.0, 3.0, 5.0)).quartiles == (2.0, 4.0)
    assert Timing((3.0,)).quartiles == (3.0, 3.0)


def test_where_nothing_was_measured_there_is_no_picture(tmp_path: Path) -> None:
    nothing = {"machine": {}, "cases": [], "not_measured": ["no GPU"]}
    assert [path.name for path in write_bench(tmp_path / "out", nothing)] == ["bench.json"]
    assert json.loads((tmp_path / "out" / "bench.json").read_text()) == nothing
    assert model_picture({"runs": [], "models": {}}) == ""


def test_a_model_is_drawn_beside_its_reference(
    tiny_folder: Callable[..., str], tmp_path: Path, capsys: pytest.CaptureFixture[str], drawn: list[Panel]
) -> None:
    folder, out = tiny_folder(), tmp_path / "out"
    small = ["--batch", "1,2", "--prompt", "8", "--new-tokens", "2", "--rounds", "2", "--output", str(out)]
    assert main(["bench", folder, "--reference", folder, *small]) == 0
    assert f"written: {out / 'bench.svg'}" in capsys.readouterr().out
    result = json.loads((out / "bench.json").read_text())
    assert [panel.title for panel in drawn] == ["prefill", "decode"]
    for panel in drawn:
        assert panel.names == ["batch 1", "batch 2"] and len(panel.series) == 2
        for role, values in zip(result["models"], panel.series.values(), strict=True):
            runs = [run for run in result["runs"] if (run["what"], run["model"]) == (panel.title, role)]
            assert values == [run["tokens_per_second"]["median"] for run in runs]
    assert (out / "bench.svg").read_text() == model_picture(result)
    assert "holds a measurement" in fails(capsys, 1, "bench", folder, *small)
