"""What other processes see: with crepe imported before or after transformers, and without crepe."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import crepe
from conftest import TEXT, save_tokenizer
from families import tiny_model

LOAD = """
import sys
{first}
{second}
from transformers import AutoModelForCausalLM
model, report = AutoModelForCausalLM.from_pretrained(sys.argv[1], output_loading_info=True)
print(type(model.model.layers[0].mlp.up_proj).__name__, report["missing_keys"], report["unexpected_keys"])
"""
# Every way to the weights; a hand-made config is one that knows nothing of crepe.
WITHOUT = """
import json, sys
sys.modules["crepe"] = None
import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, pipeline
folder = sys.argv[1]
config = AutoConfig.from_pretrained(folder)
sizes = {k: v for k, v in config.to_dict().items() if k not in ("quantization_config", "transformers_weights")}
ways = {
    "auto": lambda: AutoModelForCausalLM.from_pretrained(folder),
    "base": lambda: AutoModel.from_pretrained(folder),
    "class": lambda: LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32, use_safetensors=True),
    "base class": lambda: LlamaForCausalLM._from_config(config).base_model.__class__.from_pretrained(folder),
    "config": lambda: LlamaForCausalLM.from_pretrained(folder, config=config),
    "device_map": lambda: AutoModelForCausalLM.from_pretrained(folder, device_map={"": "cpu"}),
    "sizes ignored": lambda: AutoModelForCausalLM.from_pretrained(folder, ignore_mismatched_sizes=True),
    "pipeline": lambda: pipeline("text-generation", model=folder),
    "own config": lambda: LlamaForCausalLM.from_pretrained(folder, config=LlamaConfig(**sizes)),
}
found = {}
for name, way in ways.items():
    try:
        way()
        found[name] = "loaded"
    except Exception as error:
        found[name] = f"{type(error).__name__}: {error}"
print(json.dumps(found))
"""
IMPORT = """
import sys
import crepe
print([name for name in ("torch", "transformers", "safetensors", "numpy") if name in sys.modules])
"""


def _run(code: str, *arguments: str) -> str:
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()[-1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("packed")
    (place / "text.txt").write_text(TEXT)
    fields: dict[str, Any] = {"calibration": str(place / "text.txt"), "samples": 4, "seqlen": 16, "pattern": "2:4"}
    crepe.prune(tiny_model("llama"), place / "out", tokenizer=save_tokenizer(place), format="packed", **fields)
    return place / "out"


ASKED = "import crepe, importlib.util; importlib.util.find_spec('transformers.quantizers.auto')"


@pytest.mark.parametrize(
    "order",
    [
        ("import crepe", "import transformers"),
        ("import transformers", "import crepe"),
        (ASKED, "import transformers"),
    ],
)
def test_plain_transformers_loads_once_crepe_is_imported(folder: Path, order: tuple[str, str]) -> None:
    assert _run(LOAD.format(first=order[0], second=order[1]), str(folder)) == "PackedLinear set() set()"


def test_crepe_may_come_after_the_models(folder: Path) -> None:
    first = "from transformers import LlamaForCausalLM"
    assert _run(LOAD.format(first=first, second="import crepe"), str(folder)) == "PackedLinear set() set()"


def test_importing_crepe_stays_light() -> None:
    assert _run(IMPORT) == "[]"


def test_without_crepe_every_way_fails_and_names_it(folder: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_pretrained(folder).save_pretrained(tmp_path / "again")
    save_tokenizer(tmp_path / "again")
    for place in (folder, tmp_path / "again"):
        _assert_nothing_loads(place)


def test_without_crepe_a_width_for_each_layer_fails_and_names_it(tmp_path: Path) -> None:
    rows = torch.randint(3, 100, (4, 16), generator=torch.Generator().manual_seed(0))
    widths = ("*layers.0.*=0.5:0.5", "*layers.1.*=0.25:0.25")
    fields: dict[str, Any] = {"pattern": "channel", "sparsity": 0.25, "bounds": widths, "round_to": 4}
    tokenizer = save_tokenizer(tmp_path)
    crepe.prune(tiny_model("llama"), tmp_path / "out", rows=rows, tokenizer=tokenizer, format="sliced", **fields)
    section = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert section["format"] == "sliced" and len(section["per_layer_config"]) > 1
    _assert_nothing_loads(tmp_path / "out")


def _assert_nothing_loads(place: Path) -> None:
    found = json.loads(_run(WITHOUT, str(place)))
    own = found.pop("own config")
    for name, outcome in found.items():
        assert "pip install crepe-prune" in outcome, (name, outcome)
    # A config made by hand knows nothing of crepe: there the shapes of the weights stop it.
    assert own.startswith("RuntimeError"), own
