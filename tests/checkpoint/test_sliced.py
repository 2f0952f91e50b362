"""Sliced checkpoints compute what the masked model computes, with fewer parameters, and say so in their config."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.quantizers import auto

import crepe
from conftest import save_tokenizer
from crepe.checkpoint.convert import convert
from crepe.checkpoint.reshape import build_on_meta, shapes_of
from crepe.checkpoint.sliced import new_names, resize_for, slice_tensors
from crepe.errors import CrepeError, UsageError
from crepe.models.blocks import find_blocks
from crepe.pipeline.journal import work_folder
from crepe.pipeline.walk import forward_tokens
from families import tiny_model
from runs import prune_named

ROWS = torch.randint(3, 128, (6, 24), generator=torch.Generator().manual_seed(0))


def _model(model_type: str) -> Any:
    model = tiny_model(model_type)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    return model


def _sliced(model_type: str, output: Path, **fields: Any) -> tuple[Any, Any]:
    """(model with zeros in place, result); the folder is written."""
    model = _model(model_type)
    result = crepe.prune(model, output, rows=ROWS, batch_size=2, format="sliced", **fields)
    return model, result


def _loaded(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def _logits(model: Any) -> Tensor:
    with torch.no_grad():
        logits: Tensor = forward_tokens(model, ROWS).logits
    return logits


def _config(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return content


def _check_equal(masked: Any, folder: Path, result: Any) -> Any:
    loaded = _loaded(folder)
    assert (_logits(masked) - _logits(loaded)).abs().max() < 1e-5
    count = sum(parameter.numel() for parameter in loaded.parameters())
    assert count == result.sliced["parameters"] < result.sliced["dense_parameters"]
    assert result.sliced["dense_parameters"] == sum(parameter.numel() for parameter in masked.parameters())
    return loaded


CASES = [
    ("channel", "llama", {"intermediate_size": 48}),
    ("channel", "gpt2", {"n_inner": 48}),
    ("channel", "phi3", {"intermediate_size": 48}),
    ("channel", "qwen3_moe", {"moe_intermediate_size": 12}),
    ("channel", "gpt_oss", {"intermediate_size": 48}),
    ("channel", "deepseek_v3", {"intermediate_size": 48, "moe_intermediate_size": 12}),
    ("head", "llama", {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}),
    ("head", "qwen2", {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}),
    ("head", "phi3", {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}),
    ("head", "gpt_oss", {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}),
    ("head", "deepseek_v3", {"num_attention_heads": 2}),
]


@pytest.mark.parametrize(("pattern", "model_type", "keys"), CASES)
def test_uniform_widths_are_an_ordinary_config(
    pattern: str, model_type: str, keys: dict[str, int], tmp_path: Path
) -> None:
    sparsity, multiple = (0.25, 4) if pattern == "channel" else (0.5, 1)
    masked, result = _sliced(model_type, tmp_path / "out", pattern=pattern, sparsity=sparsity, round_to=multiple)
    config = _config(tmp_path / "out")
    assert "quantization_config" not in config and keys.items() <= config.items()
    loaded = _check_equal(masked, tmp_path / "out", result)
    assert loaded.generate(ROWS[:1], max_new_tokens=4, do_sample=False).shape == (1, 28)


def test_unused_keys_are_left_alone(tmp_path: Path) -> None:
    """A number that means something else has the value of a width that changes."""
    model = _model("llama")
    model.config.max_position_embeddings = model.config.eos_token_id = 64
    crepe.prune(model, tmp_path / "out", rows=ROWS, pattern="channel", sparsity=0.25, format="sliced")
    config = _config(tmp_path / "out")
    assert (config["intermediate_size"], config["max_position_embeddings"], config["eos_token_id"]) == (48, 64, 64)


def test_tied_embeddings_on_disk_are_one_parameter(text_file: str, tmp_path: Path) -> None:
    """Where weights stay on disk, the output embedding is a parameter of its own until it is tied."""
    model = tiny_model("llama", tie_word_embeddings=True)
    model.save_pretrained(tmp_path / "dense")
    save_tokenizer(tmp_path / "dense")
    fields = {"pattern": "channel", "sparsity": 0.25, "format": "sliced"}
    result = prune_named(str(tmp_path / "dense"), tmp_path / "out", text_file, **fields)
    assert result.sliced["dense_parameters"] == sum(parameter.numel() for parameter in model.parameters())
    assert result.sliced["config"] == {"intermediate_size": 48} and not result.sliced["per_layer"]
    assert sum(parameter.numel() for parameter in _loaded(tmp_path / "out").parameters()) == result.sliced["parameters"]


# One width for each layer


PER_LAYER = ("*layers.0.*=0.5:0.5", "*layers.1.*=0.25:0.25")


@pytest.mark.parametrize("model_type", ["llama", "phi3", "qwen3_moe"])
def test_widths_by_layer_load_through_the_registration(model_type: str, tmp_path: Path) -> None:
    fields = {"pattern": "channel", "sparsity": 0.25, "bounds": PER_LAYER, "round_to": 4}
    masked, result = _sliced(model_type, tmp_path / "out", **fields)
    data = _config(tmp_path / "out")["quantization_config"]
    assert (data["quant_method"], data["format"], data["version"]) == ("crepe", "sliced", 1)
    key = "moe_intermediate_size" if model_type == "qwen3_moe" else "intermediate_size"
    full = 16 if model_type == "qwen3_moe" else 64
    assert data["per_layer_config"]["0"] == {key: full // 2} and data["per_layer_config"]["1"] == {key: full * 3 // 4}
    loaded = _check_equal(masked, tmp_path / "out", result)
    assert loaded.generate(ROWS[:1], max_new_tokens=4, do_sample=False).shape == (1, 28)
    assert all(list(shapes_of(loaded)[name]) == shape for name, shape in data["shapes"].items())


def test_a_base_model_is_sliced_too(tmp_path: Path) -> None:
    from transformers import AutoModel

    _sliced("llama", tmp_path / "out", pattern="channel", sparsity=0.25, bounds=PER_LAYER, round_to=4)
    whole, base = _loaded(tmp_path / "out"), AutoModel.from_pretrained(tmp_path / "out", dtype=torch.float32)
    with torch.no_grad():
        assert torch.equal(base(ROWS).last_hidden_state, whole.model(ROWS).last_hidden_state)
    base.save_pretrained(tmp_path / "base")
    assert torch.equal(_loaded(tmp_path / "base").model.layers[1].mlp.up_proj.weight, base.layers[1].mlp.up_proj.weight)


def test_making_a_sliced_model_dense_is_refused(tmp_path: Path) -> None:
    """transformers would forget the shapes, and nobody could load what is saved then."""
    _sliced("llama", tmp_path / "out", pattern="channel", sparsity=0.25, bounds=PER_LAYER, round_to=4)
    loaded = _loaded(tmp_path / "out")
    with pytest.raises(CrepeError, match="sliced model is dense already"):
        loaded.dequantize()
    loaded.save_pretrained(tmp_path / "again")
    assert torch.equal(_logits(_loaded(tmp_path / "again")), _logits(loaded))


def test_heads_by_layer(tmp_path: Path) -> None:
    fields = {"pattern": "head", "sparsity": 1 / 6, "bounds": ("*layers.1.*=0.5:0.5", "*layers.[02].*=0:0")}
    masked, result = _sliced("phi3", tmp_path / "out", **fields)  # whose attention reads its counts from the config
    data = _config(tmp_path / "out")["quantization_config"]
    assert data["per_layer_config"] == {"1": {"num_attention_heads": 2, "num_key_value_heads": 1}}
    loaded = _check_equal(masked, tmp_path / "out", result)
    assert loaded.generate(ROWS[:1], max_new_tokens=4, do_sample=False).shape == (1, 28)


def test_a_width_that_no_config_knows_is_resized_alone(tmp_path: Path) -> None:
    masked, result = _sliced("bloom", tmp_path / "out", pattern="channel", sparsity=0.25)
    assert _config(tmp_path / "out")["quantization_config"]["per_layer_config"] == {}
    loaded = _check_equal(masked, tmp_path / "out", result)
    assert find_blocks(loaded)[0].module.mlp.dense_4h_to_h.in_features == 96


def test_without_crepe_it_fails_by_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _sliced("llama", tmp_path / "out", pattern="channel", sparsity=0.25, bounds=PER_LAYER)
    for mapping in (auto.AUTO_QUANTIZER_MAPPING, auto.AUTO_QUANTIZATION_CONFIG_MAPPING):
        monkeypatch.delitem(mapping, "crepe")
    with pytest.raises(ValueError, match="only crepe can read this checkpoint: pip install crepe-prune"):
        _loaded(tmp_path / "out")


def test_a_later_format_is_refused() -> None:
    with pytest.raises(CrepeError, match="update crepe"):
        resize_for(None, {"version": 2, "shapes": {}, "per_layer_config": {}})


@pytest.mark.parametrize(
    ("entries", "match"),
    [
        ({"per_layer_config": {}}, "None as 'shapes'"),
        ({"shapes": {}, "per_layer_config": [1]}, r"\[1\] as 'per_layer_config'"),
        ({"shapes": {"lm_head.weight": "a"}, "per_layer_config": {}}, "'a' as the shape of 'lm_head.weight'"),
        ({"shapes": {"lm_foot.weight": [3]}, "per_layer_config": {}}, "describes a tensor 'lm_foot.weight' that"),
        ({"shapes": {"model": [3]}, "per_layer_config": {}}, "describes a tensor 'model' that"),
        ({"shapes": {}, "per_layer_config": {"0": "x"}}, "'x' for layer '0'"),
        ({"shapes": {}, "per_layer_config": {}, "attributes": [1]}, r"\[1\] as 'attributes'"),
        (
            {"shapes": {}, "per_layer_config": {}, "attributes": {"model.layers.9.size": 3}},
            "module 'model.layers.9' that",
        ),
        ({"shapes": {}, "per_layer_config": {"9": {}}}, "describes layer '9' .*: the model has 3"),
    ],
)
def test_a_description_that_makes_no_sense(entries: dict[str, Any], match: str) -> None:
    with pytest.raises(CrepeError, match=match):
        resize_for(tiny_model("llama"), {"version": 1, **entries})


def test_a_parameter_that_no_key_reaches_is_resized_alone() -> None:
    model = build_on_meta(tiny_model("llama"), tiny_model("llama").config)
    data = {"version": 1, "shapes": {"model.layers.0.mlp.up_proj.weight": [48, 32]}, "per_layer_config": {"0": {}}}
    resize_for(model, data)
    assert model.model.layers[0].mlp.up_proj.out_features == 48


@pytest.mark.parametrize("model_type", ["gpt2", "opt", "gpt_neox", "stablelm", "gptj", "gpt_neo"])
def test_heads_that_no_config_knows_take_their_numbers_along(model_type: str, tmp_path: Path) -> None:
    """The size of their heads is the hidden size by their number, so no config describes fewer of the same size."""
    masked, result = _sliced(model_type, tmp_path / "out", pattern="head", sparsity=0.5)
    data = _config(tmp_path / "out")["quantization_config"]
    assert data["per_layer_config"] == {} and bool(data.get("attributes")) == (model_type != "gpt_neox")
    loaded = _check_equal(masked, tmp_path / "out", result)
    assert loaded.generate(ROWS[:1], max_new_tokens=4, do_sample=False).shape == (1, 28)


def test_an_index_that_looks_like_a_count_is_left_alone(tmp_path: Path) -> None:
    """The fifth block has the index 4, and 4 heads."""
    model = tiny_model("gpt2", num_hidden_layers=6, n_layer=6)
    crepe.prune(model, tmp_path / "out", rows=ROWS, batch_size=2, pattern="head", sparsity=0.5, format="sliced")
    loaded = _loaded(tmp_path / "out")
    assert [block.module.attn.layer_idx for block in find_blocks(loaded)] == list(range(6))
    assert (_logits(model) - _logits(loaded)).abs().max() < 1e-5


@pytest.mark.parametrize("model_type", ["bloom", "mpt", "codegen"])
def test_heads_that_a_forward_counts_for_itself_are_refused(model_type: str, tmp_path: Path) -> None:
    """Biases for each head that the model makes from its config, and a split into four groups."""
    with pytest.raises(UsageError, match="--format dense"):
        _sliced(model_type, tmp_path / "out", pattern="head", sparsity=0.5)
    assert not list(tmp_path.iterdir())
    result = crepe.prune(_model(model_type), rows=ROWS, batch_size=2, pattern="head", sparsity=0.5)
    assert all(record["kept"] == 2 for records in result.units.values() for record in records)


def test_what_cannot_be_resized_is_refused_before_anything_is_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("crepe.pipeline.structured.following_attributes", lambda *arguments: None)
    with pytest.raises(UsageError, match=r"no config of GPT2LMHeadModel describes .* --format dense"):
        _sliced("gpt2", tmp_path / "out", pattern="head", sparsity=0.5)
    assert not list(tmp_path.iterdir())


# Blocks


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "gemma3_text", "smollm3", "deepseek_v3", "lfm2", "nemotron_h"])
def test_without_blocks_the_others_go_on(model_type: str, tmp_path: Path) -> None:
    model, result = _sliced(model_type, tmp_path / "out", pattern="block", sparsity=0.4)
    gone = [block for block in find_blocks(model) if not result.units[block.name]["stays"]]
    assert len(gone) == 1
    loaded = _loaded(tmp_path / "out")
    assert len(find_blocks(loaded)) == 2
    gone[0].module.forward = lambda hidden, *args, **kwargs: hidden  # type: ignore[method-assign]
    assert (_logits(model) - _logits(loaded)).abs().max() < 1e-5
    assert sum(parameter.numel() for parameter in loaded.parameters()) == result.sliced["parameters"]
    with_cache = loaded.generate(ROWS[:1], max_new_tokens=6, do_sample=False)
    assert torch.equal(with_cache, loaded.generate(ROWS[:1], max_new_tokens=6, do_sample=False, use_cache=False))


def test_lists_with_an_entry_for_each_block_become_shorter(tmp_path: Path) -> None:
    _sliced("smollm3", tmp_path / "out", pattern="block", sparsity=0.4)
    config = _config(tmp_path / "out")
    assert len(config["no_rope_layers"]) == len(config["layer_types"]) == config["num_hidden_layers"] == 2


def test_new_names_count_from_the_start() -> None:
    blocks = find_blocks(tiny_model("llama"))
    stays = {"model.layers.0": True, "model.layers.1": False, "model.layers.2": True}
    assert new_names(blocks, stays) == {"model.layers.0": "model.layers.0", "model.layers.2": "model.layers.1"}


# Tensors


def test_experts_are_cut_each_in_its_own_place() -> None:
    tensor = torch.arange(2 * 3 * 4).reshape(2, 3, 4)
    kept = torch.tensor([[0, 2], [1, 3]], dtype=torch.int32)
    cut = slice_tensors({"experts": tensor}, {"experts@2": kept})["experts"]
    assert torch.equal(cut, torch.stack([tensor[0][:, [0, 2]], tensor[1][:, [1, 3]]]))


def test_a_sliced_folder_is_not_converted(tmp_path: Path) -> None:
    """Its zeros are gone; a conversion would lose the widths of the layers."""
    _sliced("llama", tmp_path / "each", pattern="channel", sparsity=0.25, bounds=PER_LAYER)
    _sliced("llama", tmp_path / "same", pattern="channel", sparsity=0.25)
    for name, message in (("each", "a width for each layer"), ("same", "no zeros to pack")):
        with pytest.raises(CrepeError, match=message):
            convert(tmp_path / name, tmp_path / "out", "packed")
    assert not (tmp_path / "out").exists()


def test_converting_leaves_an_unfinished_run_alone(tmp_path: Path) -> None:
    model = _model("llama")
    crepe.prune(model, tmp_path / "dense", rows=ROWS, batch_size=2, pattern="2:4", tokenizer=save_tokenizer(tmp_path))
    begun = work_folder(tmp_path / "out") / "journal.jsonl"
    begun.parent.mkdir()
    begun.write_text("begun")
    convert(tmp_path / "dense", tmp_path / "out", "packed")
    assert begun.read_text() == "begun"
