"""The package as installed: one import name, lazy, typed, tidy, and no clash with the packages around it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import crepe

ROOT = Path(__file__).parent.parent


def _run(*command: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True)


def test_everything_public_can_be_had() -> None:
    for name in crepe.__all__:
        assert getattr(crepe, name)
    with pytest.raises(AttributeError, match="no attribute 'prun'"):
        _ = crepe.prun  # type: ignore[attr-defined]


def test_nothing_but_crepe_is_importable_from_elsewhere(tmp_path: Path) -> None:
    names = ("search", "eval", "configs", "kernels", "tests")
    code = f"import importlib.util as u; print([n for n in {names} if u.find_spec(n)])"
    assert _run(sys.executable, "-c", code, cwd=tmp_path).stdout.strip() == "[]"


def test_a_llama_loads_with_the_repository_on_the_path() -> None:
    """transformers probes for a package called `kernels`; ours must not be taken for it."""
    code = "import sys; sys.path.insert(0, '.'); from transformers import LlamaForCausalLM; print('loaded')"
    assert _run(sys.executable, "-c", code).stdout.strip() == "loaded"


def test_the_checkout_works_as_it_lies() -> None:
    """With the repository root first on the path, its folders are found without being installed."""
    code = "import sys; sys.path.insert(0, '.'); import crepe, crepe.eval.evaluate; "
    code += "from crepe.configs import names; print(crepe.__file__, names('recipes'))"
    assert str(ROOT) in (done := _run(sys.executable, "-c", code)).stdout and "fast" in done.stdout, done.stderr


def test_the_wheel_holds_crepe_alone(tmp_path: Path) -> None:
    pytest.importorskip("setuptools", reason="setuptools is not installed")
    import tomllib

    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    mapped = {"search": "search", "eval": "eval", "configs": "configs", "kernels": "kernels"}
    folders = {p.parent for top in ("crepe", *mapped) for p in (ROOT / top).rglob("__init__.py")}
    for folder in folders:
        parts = folder.relative_to(ROOT).parts
        name = ".".join(("crepe", *parts) if parts[0] in mapped else parts)
        assert name in packages, name


@pytest.mark.parametrize("command", [("ruff", "check", "."), ("ruff", "format", "--check", ".")])
def test_ruff(command: tuple[str, ...]) -> None:
    executable = shutil.which(command[0], path=str(Path(sys.executable).parent)) or shutil.which(command[0])
    if executable is None:
        pytest.skip("ruff is not installed")
    done = _run(executable, *command[1:])
    assert done.returncode == 0, done.stdout + done.stderr


def test_mypy_on_the_installed_package() -> None:
    pytest.importorskip("mypy", reason="mypy is not installed")
    if not (Path(crepe.__file__).parent / "configs").is_dir():
        pytest.skip("crepe is installed in editable mode, whose mapped folders mypy does not see")
    done = _run(sys.executable, "-m", "mypy", "-p", "crepe")
    assert done.returncode == 0, done.stdout + done.stderr


def test_functions_and_files_stay_short() -> None:
    import ast

    for path in [p for name in ("crepe", "eval", "search", "kernels", "configs") for p in (ROOT / name).rglob("*.py")]:
        text = path.read_text()
        assert text.count("\n") < 600, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                assert (node.end_lineno or 0) - node.lineno < 80, f"{path}: {node.name}"
