"""Packed checkpoints as a whole: written by a run, loaded by transformers, converted, saved again."""

from __future__ import annotations

import copy
import json
import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import CompileConfig

import crepe
from conftest import fails, save_tokenizer
from crepe.checkpoint import write
from crepe.checkpoint.modules import PackedLinear
from crepe.checkpoint.packing import pack
from crepe.checkpoint.section import GUARD, read_section
from crepe.cli.main import main
from crepe.errors import CrepeError
from crepe.masks import Mask, parse_pattern
from families import tiny_model
from runs import assert_resume_gives_the_same_bytes, prune_named

TOKENS = torch.randint(3, 100, (2, 12), generator=torch.Generator().manual_seed(0))
QUICK: dict[str, Any] = {"samples": 4, "seqlen": 16, "method": "magnitude"}


def _load(folder: Path, kind: str = "AutoModelForCausalLM", **kwargs: Any) -> Any:
    import transformers

    return getattr(transformers, kind).from_pretrained(folder, **kwargs)


def _both(folder: str, text: str, place: Path, **fields: Any) -> tuple[Any, Any]:
    """The same run dense and packed, both loaded by plain transformers."""
    for format in ("dense", "packed"):
        prune_named(folder, place / format, text, **{**QUICK, **fields}, format=format)
    return _load(place / "dense"), _load(place / "packed")


def _assert_same(one: Any, other: Any) -> None:
    first, second = one.state_dict(), other.state_dict()
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("pattern", ["2:4", "colblock:8x8", "unstructured"])
def test_the_packed_model_is_the_dense_one(
    tiny_folder: Callable[..., str], text_file: str, tmp_path: Path, pattern: str
) -> None:
    dense, packed = _both(tiny_folder(), text_file, tmp_path, pattern=pattern)
    layers = sum(isinstance(module, PackedLinear) for module in packed.modules())
    assert layers == (0 if pattern == "unstructured" else 21)
    assert torch.equal(dense(TOKENS).logits, packed(TOKENS).logits)
    options = {"max_new_tokens": 6, "do_sample": False}
    assert torch.equal(dense.generate(TOKENS, **options), packed.generate(TOKENS, **options))
    packed.dequantize()
    _assert_same(packed, dense)


# Transposed layers, fused experts under other names in the checkpoint, a layer with its own forward, shared weights.
@pytest.mark.parametrize(
    ("model_type", "pattern"),
    [("gpt2", "2:4"), ("mixtral", "colblock:8x8"), ("qwen3_moe", "2:4"), ("falcon", "2:4"), ("zamba2", "2:4")],
)
def test_other_structures_come_back_exactly(
    tiny_folder: Callable[..., str], text_file: str, tmp_path: Path, model_type: str, pattern: str
) -> None:
    dense, packed = _both(tiny_folder(model_type), text_file, tmp_path, pattern=pattern)
    assert torch.equal(dense(TOKENS, use_cache=False).logits, packed(TOKENS, use_cache=False).logits)
    packed.save_pretrained(tmp_path / "again")
    again = _load(tmp_path / "again")
    again.dequantize()
    _assert_same(again, dense)


def test_saving_a_packed_model_keeps_everything(
    tiny_folder: Callable[..., str], text_file: str, tmp_path: Path
) -> None:
    prune_named(tiny_folder(), tmp_path / "out", text_file, **QUICK, pattern="2:4", format="packed")
    model = _load(tmp_path / "out")
    model.save_pretrained(tmp_path / "again")
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("out", "again"))
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    assert read_section(tmp_path / "again") == read_section(tmp_path / "out")
    assert json.loads((tmp_path / "again" / "config.json").read_text())["transformers_weights"] == GUARD
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert twin.save_pretrained.args == (twin,)
        assert torch.equal(twin(TOKENS).logits, model(TOKENS).logits)


def test_sizes_are_counted(tiny_folder: Callable[..., str], text_file: str, tmp_path: Path) -> None:
    result = prune_named(
        tiny_folder(), tmp_path / "out", text_file, **QUICK, pattern="2:4", format="packed", dtype="bfloat16"
    )
    sizes = json.loads((tmp_path / "out" / "crepe.json").read_text())["packed"]
    weights = sum(math.prod(report.shape) for report in result.tensors.values())
    assert sizes["dense_pruned_bytes"] == 2 * weights and sizes["pruned_bytes"] * 16 == 18 * weights
    assert sizes["file_bytes"] == (tmp_path / "out" / "model.safetensors").stat().st_size
    assert sizes["dense_file_bytes"] - sizes["file_bytes"] == 2 * weights * 7 // 16
    assert result.to_json()["packed"]["file_bytes"] == sizes["file_bytes"]
    card = (tmp_path / "out" / "README.md").read_text()
    assert "import crepe" in card and "0.5625 of their dense bytes" in card and "--format packed" in card
    stored = load_file(tmp_path / "out" / "model.safetensors")
    for name, about in sizes["tensors"].items():
        parts = [tensor for other, tensor in stored.items() if other == name or other.startswith(name + "_")]
        assert sum(tensor.numel() * tensor.element_size() for tensor in parts) == about["bytes"], name


def test_a_permuted_mask_is_really_two_of_four(tiny_folder: Callable[..., str], text_file: str, tmp_path: Path) -> None:
    dense, packed = _both(
        tiny_folder(), text_file, tmp_path, pattern="2:4", refine="permute", method="wanda", pipeline="one-pass"
    )
    orders = [name for name in load_file(tmp_path / "packed" / "model.safetensors") if name.endswith("_order")]
    assert orders
    assert torch.allclose(dense(TOKENS).logits, packed(TOKENS).logits, atol=1e-5)
    packed.dequantize()
    _assert_same(packed, dense)


def test_a_killed_run_ends_with_the_same_bytes(tiny_folder: Callable[..., str], text_file: str, tmp_path: Path) -> None:
    fields = {"pattern": "2:4", "format": "packed", "pipeline": "sequential", "method": "wanda", "save_masks": True}
    assert_resume_gives_the_same_bytes(tiny_folder("mixtral"), text_file, tmp_path, **fields)


def test_a_large_model_is_packed_in_several_files(
    tiny_folder: Callable[..., str], text_file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny_folder()
    prune_named(folder, tmp_path / "one", text_file, **QUICK, pattern="2:4", format="packed")
    monkeypatch.setattr(write, "ONE_FILE", 1)
    prune_named(folder, tmp_path / "many", text_file, **QUICK, pattern="2:4", format="packed")
    assert len(list((tmp_path / "many").glob("model-*.safetensors"))) > 3
    _assert_same(_load(tmp_path / "one"), _load(tmp_path / "many"))


def test_a_base_model_and_one_with_a_head_read_each_others_files(
    tiny_folder: Callable[..., str], text_file: str, tmp_path: Path
) -> None:
    dense, _ = _both(tiny_folder(), text_file, tmp_path, pattern="2:4")
    _load(tmp_path / "packed", "AutoModel").save_pretrained(tmp_path / "base")
    names = read_section(tmp_path / "base")["tensors"]
    assert "layers.0.mlp.up_proj.weight" in names
    head = _load(tmp_path / "base")
    assert isinstance(head.model.layers[0].mlp.up_proj, PackedLinear)
    assert torch.equal(head.model(TOKENS).last_hidden_state, dense.model(TOKENS).last_hidden_state)


def test_a_packed_model_wants_no_gradients(tiny_folder: Callable[..., str], text_file: str, tmp_path: Path) -> None:
    """So that it can be compiled where nobody said no_grad."""
    _, packed = _both(tiny_folder(), text_file, tmp_path, pattern="2:4")
    assert not any(parameter.requires_grad for parameter in packed.parameters())
    compiled = torch.compile(packed, backend="aot_eager")
    assert torch.allclose(compiled(TOKENS).logits, packed(TOKENS).logits, atol=1e-5)
    packed.dequantize()(TOKENS).logits.sum().backward()
    assert all(parameter.grad is not None for parameter in packed.parameters())


def test_a_layer_with_an_order_takes_inputs_of_its_width_only(
    tiny_folder: Callable[..., str], text_file: str, tmp_path: Path
) -> None:
    _, packed = _both(tiny_folder(), text_file, tmp_path, pattern="2:4", refine="permute", method="wanda")
    layer = packed.model.layers[0].mlp.up_proj
    assert layer.layout.ordered
    for width in (31, 33):
        with pytest.raises(RuntimeError, match=f"size of dim 1 \\({width}\\)"):
            layer(torch.zeros(2, width))


def test_other_classes_and_dtypes(tiny_folder: Callable[..., str], text_file: str, tmp_path: Path) -> None:
    dense, _ = _both(tiny_folder(), text_file, tmp_path, pattern="2:4")
    for kind in ("AutoModel", "LlamaModel"):
        base = _load(tmp_path / "packed", kind)
        assert torch.equal(base(TOKENS).last_hidden_state, dense.model(TOKENS).last_hidden_state)
    half = _load(tmp_path / "packed", "LlamaForCausalLM", dtype=torch.bfloat16)
    assert half.model.layers[0].self_attn.q_proj.weight.dtype == torch.bfloat16
    half.dequantize()
    _assert_same(half, dense.to(torch.bfloat16))


def test_packed_layers_compile_without_a_break(tiny_folder: Callable[..., str], text_file: str, tmp_path: Path) -> None:
    _, packed = _both(tiny_folder(), text_file, tmp_path, pattern="2:4", refine="permute", method="wanda")
    layer, inputs = packed.model.layers[0].mlp, torch.randn(2, 32)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    assert torch.allclose(compiled(inputs), layer(inputs), atol=1e-6)


@pytest.mark.parametrize("pattern", ["2:4", "colblock:8x8"])
@pytest.mark.parametrize(
    ("stored", "given", "wanted"),
    [
        (torch.bfloat16, torch.float32, torch.bfloat16),
        (torch.float32, torch.float32, torch.bfloat16),
        (torch.float64, torch.float64, torch.float64),
    ],
)
def test_autocast_holds_for_packed_layers_as_for_dense_ones(
    pattern: str, stored: torch.dtype, given: torch.dtype, wanted: torch.dtype
) -> None:
    weight = torch.randn(16, 32, generator=torch.Generator().manual_seed(0)).to(stored)
    mask = parse_pattern(pattern).select(weight.float().abs(), 0.5)
    dense = torch.nn.Linear(32, 16, dtype=stored)
    dense.weight.data = weight * mask
    found = pack(dense.weight.data, [Mask(mask, parse_pattern(pattern))], transposed=False)
    assert found.layout is not None
    packed = PackedLinear(found.layout, dense)
    packed.load_state_dict({"weight" + suffix: part for suffix, part in found.tensors.items()} | {"bias": dense.bias})
    inputs = torch.randn(2, 3, 32, generator=torch.Generator().manual_seed(1)).to(given)
    compiled = torch.compile(packed, backend="aot_eager", fullgraph=True)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected = dense(inputs)
        assert expected.dtype == wanted
        assert torch.equal(packed(inputs), expected) and torch.equal(compiled(inputs), expected)


@pytest.mark.parametrize("pattern", ["2:4", "colblock:8x8"])
def test_generate_compiles_the_whole_step(
    tiny_folder: Callable[..., str], text_file: str, tmp_path: Path, pattern: str
) -> None:
    """As transformers does by itself on a GPU where the cache has a fixed size."""
    _, packed = _both(tiny_folder(), text_file, tmp_path, pattern=pattern)
    fields = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    expected = packed.generate(TOKENS[:1], **fields)
    how = CompileConfig(backend="eager", mode="default", fullgraph=True)
    how._compile_all_devices = True
    torch._dynamo.utils.counters.clear()
    found = packed.generate(TOKENS[:1], cache_implementation="static", compile_config=how, **fields)
    assert torch.equal(found, expected)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 1


def test_a_model_in_memory_is_packed_too(text_file: str, tmp_path: Path) -> None:
    model, tokenizer = tiny_model("llama"), save_tokenizer(tmp_path)
    fields = {**QUICK, "calibration": text_file, "pattern": "colblock:8x8", "format": "packed"}
    result = crepe.prune(model, tmp_path / "out", tokenizer=tokenizer, **fields)
    loaded, _ = crepe.load(str(tmp_path / "out"))
    assert torch.equal(loaded(TOKENS).logits, model(TOKENS).logits)
    assert result.packed["pruned_bytes"] < 0.6 * result.packed["dense_pruned_bytes"]


def test_what_becomes_a_bitmap_says_why(
    tiny_folder: Callable[..., str], text_file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A mask that was permuted alone is 2:4 in an order that dense weights do not keep."""
    fields = {**QUICK, "pattern": "2:4", "refine": "permute", "method": "wanda"}
    options = {**fields, "calibration": text_file, "format": "packed", "tokenizer": save_tokenizer(tmp_path)}
    result = crepe.prune(tiny_model("llama"), tmp_path / "object", **options)
    prune_named(tiny_folder(), tmp_path / "dense", text_file, **fields)
    assert main(["convert", str(tmp_path / "dense"), str(tmp_path / "converted"), "--format", "packed"]) == 0
    printed = capsys.readouterr().out
    for name in ("object", "converted"):
        tensors = json.loads((tmp_path / name / "crepe.json").read_text())["packed"]["tensors"]
        bitmaps = [about for about in tensors.values() if about["layout"] == "bitmap"]
        assert bitmaps and all("permuted alone" in about["reason"] for about in bitmaps), name
        note = f"stored as bitmaps, not in the layout of their pattern: {len(bitmaps)} of "
        assert note in printed if name == "converted" else any(note in line for line in result.notes)


@pytest.mark.parametrize("pattern", ["2:4", "unstructured"])
def test_packed_weights_on_disk_are_refused_by_name(
    tiny_folder: Callable[..., str], text_file: str, tmp_path: Path, pattern: str
) -> None:
    prune_named(tiny_folder(), tmp_path / "out", text_file, **QUICK, pattern=pattern, format="packed")
    with pytest.raises(CrepeError, match=r"offloaded to disk.*crepe convert DIR OUT --format dense"):
        _load(tmp_path / "out", device_map={"": "disk"}, offload_folder=str(tmp_path / "offload"))


def test_saving_with_an_upload_is_refused(tiny_folder: Callable[..., str], text_file: str, tmp_path: Path) -> None:
    """The upload would come before the guard."""
    prune_named(tiny_folder(), tmp_path / "out", text_file, **QUICK, pattern="2:4", format="packed")
    model = _load(tmp_path / "out")
    for arguments, options in (((), {"push_to_hub": True}), ((True, None, True), {})):
        with pytest.raises(CrepeError, match=r"crepe push DIR owner/name"):
            model.save_pretrained(tmp_path / "again", *arguments, **options)
    assert not (tmp_path / "again").exists()
    model.save_pretrained(tmp_path / "again", push_to_hub=False)


def test_dense_to_packed_and_back(
    tiny_folder: Callable[..., str], text_file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _both(tiny_folder("mixtral"), text_file, tmp_path, pattern="2:4")
    for start, end in (("packed", "dense"), ("dense", "packed")):
        assert main(["convert", str(tmp_path / start), str(tmp_path / f"{end}2"), "--format", end]) == 0
        first, second = (load_file(tmp_path / name / "model.safetensors") for name in (end, f"{end}2"))
        assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
        assert {p.name for p in (tmp_path / end).iterdir()} == {p.name for p in (tmp_path / f"{end}2").iterdir()}
    assert read_section(tmp_path / "packed2") == read_section(tmp_path / "packed")
    modes = {p.stat().st_mode for p in tmp_path.glob("*2/*")}
    assert modes == {(tmp_path / "dense2" / "config.json").stat().st_mode}  # who may read one may read all
    manifests = [json.loads((tmp_path / name / "crepe.json").read_text()) for name in ("packed", "packed2")]
    assert manifests[0]["packed"]["pruned_bytes"] == manifests[1]["packed"]["pruned_bytes"]
    assert "packed" not in json.loads((tmp_path / "dense2" / "crepe.json").read_text())
    packed, dense = str(tmp_path / "packed"), str(tmp_path / "dense2")
    for places, message in (
        ((packed, dense), "dense2 exists: choose another folder, or replace it with --overwrite"),
        ((dense, str(tmp_path / "new")), "dense2 is dense already"),
        ((packed, str(tmp_path / "new"), "--format", "packed"), "packed is packed already"),
        ((str(tmp_path / "gone"), str(tmp_path / "new")), "gone: check the path"),
    ):
        assert message in fails(capsys, 1, "convert", "--format", "dense", *places)
    assert main(["convert", packed, dense, "--format", "dense", "--overwrite"]) == 0
    assert "holds the model itself" in fails(capsys, 2, "convert", packed, packed, "--format", "dense", "--overwrite")


def test_the_verbs_on_a_packed_folder(
    tiny_folder: Callable[..., str], text_file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = tiny_folder(), str(tmp_path / "out")
    options = ["--calibration", text_file, "--samples", "4", "--seqlen", "16"]
    assert main(["prune", "--model", folder, "--output", out, "--pattern", "2:4", "--format", "packed", *options]) == 0
    assert "of their dense bytes" in capsys.readouterr().out
    numbers = crepe.evaluate(out, data=text_file, seqlen=32, max_windows=2, reference=folder, save=True)
    assert numbers["kl_divergence"] > 0 and "KL divergence" in (tmp_path / "out" / "README.md").read_text()
    assert main(["push", out, "owner/name", "--dry-run"]) == 0
    error = fails(capsys, 1, "prune", "--model", out, "--output", str(tmp_path / "twice"), *options)
    assert "crepe convert" in error and "--format dense" in error
